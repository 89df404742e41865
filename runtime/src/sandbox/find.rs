//! From what a CRI client calls a pod to its record.

use std::sync::Arc;

use bulkhead_records::Ambiguous;

use super::SandboxError;
use crate::{
    app::App,
    records::{SandboxRecord, SandboxState},
};

/// Finds by id or the unique beginning of one.
pub(super) fn by_id(app: &App, id: &str) -> Result<Option<Arc<SandboxRecord>>, SandboxError> {
    search(app, id, |_| true)
}

/// Like [`by_id`], but it must be there. What is being created is not yet.
pub(crate) fn find(app: &App, id: &str) -> Result<Arc<SandboxRecord>, SandboxError> {
    search(app, id, |record| record.state != SandboxState::Creating)?
        .ok_or_else(|| SandboxError::NotFound { id: id.to_owned() })
}

fn search(
    app: &App,
    id: &str,
    shown: impl Fn(&SandboxRecord) -> bool,
) -> Result<Option<Arc<SandboxRecord>>, SandboxError> {
    let found = app.records.sandboxes.find(id, shown);
    found.map_err(|Ambiguous| SandboxError::Ambiguous { id: id.to_owned() })
}
