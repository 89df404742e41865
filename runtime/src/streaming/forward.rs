//! Port-forward: a connection to a port inside a pod is a session with the pod's agent.

use bulkhead_proto::agent::{session_request::Forward, session_request::What};
use tokio::net::UnixStream;

use crate::{app::App, error::chain};

/// Connects to a port; the text of what failed, for the client.
pub(super) async fn connect(app: &App, pod: &str, port: u16) -> Result<UnixStream, String> {
    let agent = match app.pods.ready(pod) {
        Ok(pod) => pod.agent.clone(),
        Err(error) => return Err(chain(&error)),
    };
    let to = Forward { port: port.into() };
    agent
        .session("connect to the port", What::Forward(to))
        .await
        .map_err(|error| chain(&error))
}
