//! From what a CRI client calls a pod to its record.

use std::sync::Arc;

use super::SandboxError;
use crate::{
    app::App,
    records::{SandboxRecord, SandboxState},
};

/// Finds by id or the unique beginning of one; it must be there. What is being created is not yet.
pub(crate) fn find(app: &App, id: &str) -> Result<Arc<SandboxRecord>, SandboxError> {
    app.records
        .sandboxes
        .find(id)
        .filter(|record| record.state != SandboxState::Creating)
        .ok_or_else(|| SandboxError::NotFound { id: id.to_owned() })
}
