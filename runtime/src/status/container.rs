//! A container's record as CRI's messages. Pure.

use bulkhead_images::ImageRecord;
use bulkhead_proto::cri;

use super::resources::in_force;
use crate::{
    oci::signal,
    records::{ContainerRecord, ContainerState, SandboxRecord},
};

/// The state CRI shows.
pub(crate) fn container_state(record: &ContainerRecord) -> cri::ContainerState {
    match record.status.state {
        ContainerState::Creating | ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running => cri::ContainerState::ContainerRunning,
        ContainerState::Exited => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

/// An entry of ListContainers.
pub(crate) fn list_container(record: &ContainerRecord) -> cri::Container {
    let meta = &record.meta;
    cri::Container {
        id: meta.id.clone(),
        pod_sandbox_id: meta.sandbox_id.clone(),
        metadata: meta.config.metadata.clone(),
        image: meta.config.image.clone(),
        image_ref: meta.image_id.clone(),
        state: container_state(record) as i32,
        created_at: meta.created_at,
        labels: meta.config.labels.clone(),
        annotations: meta.config.annotations.clone(),
        image_id: meta.image_id.clone(),
    }
}

/// ContainerStatus.
pub(crate) fn describe_container(
    record: &ContainerRecord,
    sandbox: Option<&SandboxRecord>,
    image: Option<&ImageRecord>,
) -> cri::ContainerStatus {
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
        state: container_state(record) as i32,
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
            linux: Some(in_force(record, sandbox)),
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
