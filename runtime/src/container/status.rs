//! ContainerStatus and ListContainers: from the records alone, without asking any guest.

use std::collections::HashMap;

use bulkhead_images::ImageRecord;
use bulkhead_proto::cri;

use super::{ContainerError, find, of_pod};
use crate::{
    app::App,
    oci::signal,
    records::{ContainerRecord, ContainerState},
};

/// One container, with `verbose` also what only a human reads.
pub fn status(
    app: &App,
    id: &str,
    verbose: bool,
) -> Result<cri::ContainerStatusResponse, ContainerError> {
    let record = find::existing(app, id)?;
    let image = app.images.by_id(&record.meta.image_id);
    let info = if verbose {
        info(&record)
    } else {
        HashMap::new()
    };
    Ok(cri::ContainerStatusResponse {
        status: Some(describe(&record, image.as_deref())),
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
    Ok(records.iter().map(|record| brief(record)).collect())
}

/// The statuses of a pod's containers, newest first.
pub(crate) fn statuses_of(app: &App, sandbox_id: &str) -> Vec<cri::ContainerStatus> {
    let mut records = of_pod(app, sandbox_id);
    records.retain(|record| record.status.state != ContainerState::Creating);
    records.sort_by_key(|record| std::cmp::Reverse(record.meta.created_at));
    let status = |record: &std::sync::Arc<ContainerRecord>| {
        let image = app.images.by_id(&record.meta.image_id);
        describe(record, image.as_deref())
    };
    records.iter().map(status).collect()
}

fn lets_through(filter: &cri::ContainerFilter, record: &ContainerRecord) -> bool {
    let state = filter
        .state
        .as_ref()
        .is_none_or(|state| state.state == state_of(record) as i32);
    state
        && record.meta.id.starts_with(&filter.id)
        && record.meta.sandbox_id.starts_with(&filter.pod_sandbox_id)
        && has_labels(&record.meta.config.labels, &filter.label_selector)
}

/// Whether all wanted labels are there with the wanted values.
pub(super) fn has_labels(
    labels: &HashMap<String, String>,
    wanted: &HashMap<String, String>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn state_of(record: &ContainerRecord) -> cri::ContainerState {
    match record.status.state {
        ContainerState::Creating | ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running => cri::ContainerState::ContainerRunning,
        ContainerState::Exited => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

fn brief(record: &ContainerRecord) -> cri::Container {
    let meta = &record.meta;
    cri::Container {
        id: meta.id.clone(),
        pod_sandbox_id: meta.sandbox_id.clone(),
        metadata: meta.config.metadata.clone(),
        image: meta.config.image.clone(),
        image_ref: meta.image_id.clone(),
        state: state_of(record) as i32,
        created_at: meta.created_at,
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        image_id: meta.image_id.clone(),
    }
}

fn describe(record: &ContainerRecord, image: Option<&ImageRecord>) -> cri::ContainerStatus {
    let (meta, status) = (&record.meta, &record.status);
    let (reason, message) = reason(record);
    // A name people know: the image's tag, else what the pod's author wrote, else what was asked.
    let mut spec = meta.config.image.clone().unwrap_or_default();
    if let Some(tag) = image.and_then(|image| image.repo_tags.first()) {
        spec.image.clone_from(tag);
    } else if !spec.user_specified_image.is_empty() {
        spec.image.clone_from(&spec.user_specified_image);
    }
    let digest = image.and_then(|image| image.repo_digests.first());
    let user = meta
        .user
        .as_ref()
        .map(|(uid, gid, groups)| cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: i64::from(*uid),
                gid: i64::from(*gid),
                supplemental_groups: groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        });
    cri::ContainerStatus {
        id: meta.id.clone(),
        metadata: meta.config.metadata.clone(),
        state: state_of(record) as i32,
        created_at: meta.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        image: Some(spec),
        image_ref: digest.unwrap_or(&meta.image_id).clone(),
        reason,
        message,
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        mounts: meta.config.mounts.clone(),
        log_path: meta
            .log_path
            .as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: Some(status.resources.clone()),
            windows: None,
        }),
        image_id: meta.image_id.clone(),
        user,
        stop_signal: signal::cri_of(meta.stop_signal) as i32,
    }
}

/// CRI's word for an exit, and the words that go with it.
fn reason(record: &ContainerRecord) -> (String, String) {
    let status = &record.status;
    if status.state != ContainerState::Exited {
        return (String::new(), status.message.clone());
    }
    let reason = if status.oom_killed {
        "OOMKilled"
    } else if status.started_at == 0 {
        "StartError"
    } else if status.exit_code == 0 {
        "Completed"
    } else {
        "Error"
    };
    (reason.to_owned(), status.message.clone())
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
