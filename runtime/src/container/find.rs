//! From what a CRI client calls a container to its record.

use std::sync::Arc;

use super::ContainerError;
use crate::{
    app::App,
    records::{ContainerRecord, ContainerState},
};

/// Finds by id or the unique beginning of one. What is being created is not there yet.
pub(super) fn by_id(app: &App, id: &str) -> Result<Option<Arc<ContainerRecord>>, ContainerError> {
    let shown = |record: &Arc<ContainerRecord>| record.status.state != ContainerState::Creating;
    if let Some(record) = app.records.containers.get(id) {
        return Ok(Some(record).filter(shown));
    }
    if id.is_empty() {
        return Err(ContainerError::Invalid {
            field: "container_id",
            what: "is missing".to_owned(),
        });
    }
    let all = app.records.containers.list();
    let mut fitting = all
        .into_iter()
        .filter(|record| record.meta.id.starts_with(id))
        .filter(shown);
    match (fitting.next(), fitting.next()) {
        (Some(_), Some(_)) => Err(ContainerError::Ambiguous { id: id.to_owned() }),
        (one, _) => Ok(one),
    }
}

/// Like [`by_id`], but it must be there.
pub(super) fn existing(app: &App, id: &str) -> Result<Arc<ContainerRecord>, ContainerError> {
    by_id(app, id)?.ok_or_else(|| ContainerError::NotFound { id: id.to_owned() })
}
