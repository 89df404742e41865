//! ContainerStatus and ListContainers: from the records alone, without asking any guest.

use std::collections::HashMap;

use bulkhead_proto::cri;

use super::{ContainerError, find};
use crate::{
    app::App,
    records::{ContainerRecord, ContainerState},
    status::{self, has_labels},
};

/// One container, with `verbose` also what only a human reads.
pub fn status(
    app: &App,
    id: &str,
    verbose: bool,
) -> Result<cri::ContainerStatusResponse, ContainerError> {
    let record = find::existing(app, id)?;
    let sandbox = app.records.sandboxes.get(&record.meta.sandbox_id);
    let image = app.images.by_id(&record.meta.image_id);
    let info = if verbose {
        info(&record)
    } else {
        HashMap::new()
    };
    Ok(cri::ContainerStatusResponse {
        status: Some(status::describe_container(
            &record,
            sandbox.as_deref(),
            image.as_deref(),
        )),
        info,
    })
}

/// All containers a filter lets through, newest first.
pub fn list(
    app: &App,
    filter: Option<&cri::ContainerFilter>,
) -> Result<Vec<cri::Container>, ContainerError> {
    let mut records = app.records.containers.list();
    records.retain(|record| {
        record.status.state != ContainerState::Creating
            && filter.is_none_or(|filter| lets_through(filter, record))
    });
    records.sort_by_key(|record| std::cmp::Reverse(record.meta.created_at));
    Ok(records
        .iter()
        .map(|record| status::list_container(record))
        .collect())
}

fn lets_through(filter: &cri::ContainerFilter, record: &ContainerRecord) -> bool {
    let state = filter
        .state
        .as_ref()
        .is_none_or(|state| state.state == status::container_state(record) as i32);
    state
        && record.meta.id.starts_with(&filter.id)
        && record.meta.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && has_labels(&record.meta.config.labels, &filter.label_selector)
}

fn info(record: &ContainerRecord) -> HashMap<String, String> {
    let meta = &record.meta;
    let context = meta
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    let envs = meta
        .config
        .envs
        .iter()
        .map(|pair| pair.key.clone())
        .collect::<Vec<_>>();
    let info = serde_json::json!({
        "sandboxID": meta.sandbox_id,
        "image": meta.image_id,
        "layerDisks": meta.layers,
        "command": meta.config.command,
        "args": meta.config.args,
        "envNames": envs,
        "workingDir": meta.config.working_dir,
        "tty": meta.config.tty,
        "stdin": meta.config.stdin,
        "stopSignal": meta.stop_signal,
        "privileged": context.is_some_and(|context| context.privileged),
        "notes": meta.extra,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}
