//! From what a CRI client calls a container to its record.

use std::sync::Arc;

use bulkhead_records::Ambiguous;

use super::ContainerError;
use crate::{
    app::App,
    records::{ContainerRecord, ContainerState},
};

/// Finds by id or the unique beginning of one. What is being created is not there yet.
pub(super) fn by_id(app: &App, id: &str) -> Result<Option<Arc<ContainerRecord>>, ContainerError> {
    if id.is_empty() {
        return Err(ContainerError::Invalid {
            field: "container_id",
            what: "is missing".to_owned(),
        });
    }
    let shown = |record: &ContainerRecord| record.status.state != ContainerState::Creating;
    let found = app.records.containers.find(id, shown);
    found.map_err(|Ambiguous| ContainerError::Ambiguous { id: id.to_owned() })
}

/// Like [`by_id`], but it must be there.
pub(super) fn existing(app: &App, id: &str) -> Result<Arc<ContainerRecord>, ContainerError> {
    by_id(app, id)?.ok_or_else(|| ContainerError::NotFound { id: id.to_owned() })
}
