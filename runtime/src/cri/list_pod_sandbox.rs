//! ListPodSandbox.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;
use tonic::Code;

use crate::{app::App, error::Grpc, sandbox};

impl Grpc for Infallible {
    fn code(&self) -> Code {
        match *self {}
    }
}

/// CRI ListPodSandbox.
pub async fn list_pod_sandbox(
    app: Arc<App>,
    request: v1::ListPodSandboxRequest,
) -> Result<v1::ListPodSandboxResponse, Infallible> {
    let items = sandbox::list(&app, request.filter.as_ref());
    Ok(v1::ListPodSandboxResponse { items })
}
