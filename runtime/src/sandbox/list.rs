//! ListPodSandbox: from memory; no VM and no disk is asked.

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    records::{SandboxRecord, SandboxState},
};

/// The pods a filter lets through, newest first.
pub fn list(app: &App, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
    let mut records = app.records.sandboxes.list();
    records.retain(|record| {
        record.state != SandboxState::Creating && filter.is_none_or(|f| matches(record, f))
    });
    records.sort_by(|a, b| {
        b.created_at
            .cmp(&a.created_at)
            .then_with(|| a.id.cmp(&b.id))
    });
    records.iter().map(|record| item(record)).collect()
}

/// The state CRI shows.
pub(super) fn cri_state(state: SandboxState) -> v1::PodSandboxState {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::Creating | SandboxState::NotReady | SandboxState::Released => {
            v1::PodSandboxState::SandboxNotready
        }
    }
}

fn matches(record: &SandboxRecord, filter: &v1::PodSandboxFilter) -> bool {
    let state = filter.state.as_ref();
    let labels = &record.config.labels;
    // An id may be given by its beginning, as crictl's users type it.
    record.id.starts_with(&filter.id)
        && state.is_none_or(|s| s.state == i32::from(cri_state(record.state)))
        && filter
            .label_selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

fn item(record: &SandboxRecord) -> v1::PodSandbox {
    v1::PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: cri_state(record.state).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}
