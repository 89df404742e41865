//! ListPodSandbox: from memory; no VM and no disk is asked.

use bulkhead_proto::cri as v1;

use crate::{
    app::App,
    records::{SandboxRecord, SandboxState},
    status::{list_sandbox, sandbox_state},
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
    records.iter().map(|record| list_sandbox(record)).collect()
}

fn matches(record: &SandboxRecord, filter: &v1::PodSandboxFilter) -> bool {
    let state = filter.state.as_ref();
    let labels = &record.config.labels;
    // An id may be given by its beginning, as crictl's users type it.
    record.id.starts_with(&filter.id)
        && state.is_none_or(|s| s.state == i32::from(sandbox_state(record.state)))
        && filter
            .label_selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, records::testing};

    fn record(number: u32) -> SandboxRecord {
        let metadata = v1::PodSandboxMetadata {
            name: format!("pod-{number}"),
            uid: format!("00000000-0000-0000-0000-{number:012}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let label = |key: &str, value: String| (key.to_owned(), value);
        let config = v1::PodSandboxConfig {
            metadata: Some(metadata),
            labels: [
                label("io.kubernetes.pod.name", format!("pod-{number}")),
                label("app", (number % 10).to_string()),
            ]
            .into(),
            ..Default::default()
        };
        SandboxRecord {
            config,
            created_at: i64::from(number),
            state: match number % 2 {
                0 => SandboxState::Ready,
                _ => SandboxState::NotReady,
            },
            ..testing::sandbox(&format!("{number:032x}"))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn five_hundred_pods_are_filtered_and_listed() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "[paths]\nstate_dir = {:?}\nrun_dir = \"/run/x\"\n",
            dir.path()
        );
        let config = Config::parse(std::path::Path::new("t"), &text).unwrap();
        std::fs::create_dir_all(config.paths.layers()).unwrap();
        let app = App::open(config).unwrap();
        for number in 0..500 {
            app.records.sandboxes.insert(record(number)).await.unwrap();
        }
        let half_made = SandboxRecord {
            state: SandboxState::Creating,
            ..record(500)
        };
        app.records.sandboxes.insert(half_made).await.unwrap();

        assert_eq!(list(&app, None).len(), 500);

        let state = Some(v1::PodSandboxStateValue {
            state: v1::PodSandboxState::SandboxReady.into(),
        });
        let filter = v1::PodSandboxFilter {
            state,
            label_selector: [("app".to_owned(), "4".to_owned())].into(),
            ..Default::default()
        };
        let found = list(&app, Some(&filter));
        assert_eq!(found.len(), 50);
        assert_eq!(found[0].metadata.as_ref().unwrap().name, "pod-494");
        let one = v1::PodSandboxFilter {
            id: record(7).id,
            ..Default::default()
        };
        assert_eq!(list(&app, Some(&one)).len(), 1);
    }
}
