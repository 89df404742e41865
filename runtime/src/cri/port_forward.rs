//! PortForward.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    streaming::{self, StreamingError},
};

/// CRI PortForward.
pub async fn port_forward(
    app: Arc<App>,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, StreamingError> {
    let url = streaming::port_forward(&app, request)?;
    Ok(v1::PortForwardResponse { url })
}
