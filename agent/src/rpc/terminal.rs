//! Terminals.

use bulkhead_proto::agent::ResizeTerminalRequest;

use crate::container::{ContainerError, Containers};

/// Sets a terminal's size; numbers beyond what a terminal can have are cut to that.
///
/// # Errors
/// For an unknown process or one without a terminal.
pub fn resize(
    containers: &Containers,
    request: &ResizeTerminalRequest,
) -> Result<(), ContainerError> {
    let process = request.process.clone().unwrap_or_default();
    let process = containers.process(&process.container_id, &process.exec_id)?;
    let cut = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Ok(process.resize(cut(request.columns), cut(request.rows))?)
}
