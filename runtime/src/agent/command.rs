//! A command in a container: a session with its agent, which is the command's life.

use bulkhead_proto::agent::{ExecRequest, ProcessRef, session_request::What};
use tokio::net::unix::OwnedWriteHalf;

use super::{Agent, AgentError, Frames};

/// A command that runs. Whatever happens, it ends when both of its ends here are dropped.
#[derive(Debug)]
pub struct Command {
    /// Its name with the agent.
    pub process: ProcessRef,
    /// What it writes, and its exit.
    pub output: Frames,
    /// Its standard input, if it has one; to be held in any case.
    pub input: OwnedWriteHalf,
}

impl Command {
    /// Starts it.
    pub async fn start(agent: &Agent, request: ExecRequest) -> Result<Self, AgentError> {
        let process = ProcessRef {
            container_id: request.container_id.clone(),
            exec_id: request.exec_id.clone(),
        };
        let session = agent.session("start the command", What::Exec(request));
        let (read, input) = session.await?.into_split();
        Ok(Self {
            process,
            output: Frames::new(read, "run the command"),
            input,
        })
    }
}
