//! The chain, its undoing and its repetition, with plugins that are shell scripts writing down
//! what they were called with.

use std::{fs, os::unix::fs::PermissionsExt as _};

use bulkhead_proto::cri::{PodSandboxMetadata, PortMapping};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    cni: Cni,
}

impl Fixture {
    /// `plugins`: name and script body each; every call is logged before the body runs.
    fn new(plugins: &[(&str, &str)], conf: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for sub in ["bin", "conf"] {
            fs::create_dir(at(sub)).unwrap();
        }
        let log = at("log");
        for (name, body) in plugins {
            let path = at("bin").join(name);
            let script = format!(
                "#!/bin/sh\nin=$(cat)\necho \"$CNI_COMMAND {name} $in\" >>{}\n{body}\n",
                log.display()
            );
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(at("conf").join("10.conflist"), conf).unwrap();
        let cni = Cni::new(
            at("conf"),
            vec![at("bin")],
            Duration::from_secs(20),
            at("state"),
        );
        Self { dir, cni }
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn attachment() -> Attachment {
        Attachment {
            container_id: "pod1".to_owned(),
            netns: "/run/netns/pod1".into(),
            ifname: POD_INTERFACE,
            args: String::new(),
        }
    }
}

const RESULT: &str = r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0",
    "interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"10.1.0.2/16","interface":0}]}'"#;
const CONF: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"first","x":1},
    {"type":"second","capabilities":{"portMappings":true}}]}"#;

fn pod() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "web".to_owned(),
            uid: "u;1".to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        port_mappings: vec![
            PortMapping {
                host_port: 8080,
                container_port: 80,
                ..PortMapping::default()
            },
            PortMapping {
                host_port: 0,
                container_port: 81,
                ..PortMapping::default()
            },
        ],
        ..PodSandboxConfig::default()
    }
}

#[tokio::test]
async fn the_chain_passes_results_and_del_runs_backwards_once() {
    let fixture = Fixture::new(&[("first", RESULT), ("second", RESULT)], CONF);
    let result = fixture
        .cni
        .add(Fixture::attachment(), &pod())
        .await
        .unwrap();
    assert_eq!(result.pod_addresses().len(), 1);
    let log = fixture.log();
    assert!(
        log[0].starts_with("ADD first") && !log[0].contains("prevResult"),
        "{log:?}"
    );
    assert!(!log[0].contains("portMappings"), "not declared: {log:?}");
    assert!(
        log[1].starts_with("ADD second") && log[1].contains("prevResult"),
        "{log:?}"
    );
    assert!(log[1].contains("\"hostPort\":8080") && !log[1].contains("\"containerPort\":81"));
    assert_eq!(fixture.cni.known().await.unwrap(), ["pod1"]);

    // The configuration changes: DEL goes by what ADD ran with.
    fs::write(fixture.dir.path().join("conf/10.conflist"), "{").unwrap();
    fixture.cni.del(Fixture::attachment()).await.unwrap();
    let log = fixture.log();
    assert!(
        log[2].starts_with("DEL second") && log[2].contains("prevResult"),
        "{log:?}"
    );
    assert!(log[3].starts_with("DEL first"), "{log:?}");
    fixture.cni.del(Fixture::attachment()).await.unwrap();
    assert_eq!(fixture.log().len(), 4, "nothing is left to undo");
    assert!(fixture.cni.known().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failed_add_is_undone() {
    let fixture = Fixture::new(
        &[
            ("first", RESULT),
            (
                "second",
                "[ $CNI_COMMAND = DEL ] || { echo '{\"code\":7,\"msg\":\"no\"}'; exit 1; }",
            ),
        ],
        CONF,
    );
    let error = fixture
        .cni
        .add(Fixture::attachment(), &pod())
        .await
        .unwrap_err();
    assert!(
        matches!(error, NetworkError::PluginFailed { error_code: 7, .. }),
        "{error:?}"
    );
    let verbs: Vec<_> = fixture
        .log()
        .iter()
        .map(|line| line[..10].to_owned())
        .collect();
    assert_eq!(
        verbs,
        ["ADD first ", "ADD second", "DEL second", "DEL first "]
    );
    assert!(fixture.cni.known().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_failed_del_is_kept_for_a_repetition() {
    let flag = "[ $CNI_COMMAND = ADD ] || [ -e \"$(dirname $0)/../up\" ] || exit 1;";
    let fixture = Fixture::new(
        &[("first", RESULT), ("second", &format!("{flag}{RESULT}"))],
        CONF,
    );
    fixture
        .cni
        .add(Fixture::attachment(), &pod())
        .await
        .unwrap();
    assert!(fixture.cni.del(Fixture::attachment()).await.is_err());
    assert!(
        fixture
            .log()
            .iter()
            .any(|line| line.starts_with("DEL first")),
        "the rest ran"
    );
    assert_eq!(fixture.cni.known().await.unwrap(), ["pod1"]);
    fs::write(fixture.dir.path().join("up"), "").unwrap();
    fixture.cni.del(Fixture::attachment()).await.unwrap();
    assert!(fixture.cni.known().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_missing_program_is_found_before_anything_runs() {
    let fixture = Fixture::new(&[("first", RESULT)], CONF);
    let error = fixture
        .cni
        .add(Fixture::attachment(), &pod())
        .await
        .unwrap_err();
    assert!(
        matches!(error, NetworkError::PluginMissing { .. }),
        "{error:?}"
    );
    assert!(fixture.cni.conf().is_err());
    assert!(fixture.log().is_empty());
}

#[test]
fn cni_args_hold_one_value_each() {
    let args = kubernetes_args("id", &pod());
    assert_eq!(
        args,
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
         K8S_POD_INFRA_CONTAINER_ID=id;K8S_POD_UID=u_1"
    );
}
