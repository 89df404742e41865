//! A copy of a running container's output for one who attaches.

use super::{ContainerError, find};
use crate::{
    app::App,
    logs::{LogError, OutputCopy},
};

/// Everything the container's process writes from now on, as it goes to the log.
pub async fn follow_output(app: &App, id: &str) -> Result<OutputCopy, ContainerError> {
    let record = find::existing(app, id)?;
    let id = &record.meta.id;
    let pump = app.containers.live(id).pump();
    let pump = pump.ok_or_else(|| LogError::Closed {
        container: id.clone(),
    })?;
    Ok(pump.copy().await?)
}
