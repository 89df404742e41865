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
    assert_eq!(result.addresses_of(POD_INTERFACE).len(), 1);
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
    assert!(fixture.cni.conf().await.is_err());
    assert!(fixture.log().is_empty());
}

/// The verbs and plugins of the log, in order.
fn calls(fixture: &Fixture) -> Vec<String> {
    let log = fixture.log();
    let call = |line: &String| {
        let mut words = line.split(' ');
        format!("{} {}", words.next().unwrap(), words.next().unwrap())
    };
    log.iter().map(call).collect()
}

fn input_of(fixture: &Fixture, call: &str) -> Value {
    let log = fixture.log();
    let line = log.iter().find(|line| line.starts_with(call)).unwrap();
    serde_json::from_str(&line[call.len()..]).unwrap()
}

/// CONF of another version, with further keys.
fn conf(version: &str, more: &str) -> String {
    CONF.replace("1.0.0", version)
        .replace("\"name\":\"pods\"", &format!("\"name\":\"pods\"{more}"))
}

#[tokio::test]
async fn the_status_is_what_the_plugins_say_from_1_1_on() {
    let ready = r#"[ $CNI_COMMAND != STATUS ] || [ ! -e "$(dirname $0)/../down" ] ||
        { echo '{"code":50,"msg":"no route to the store"}'; exit 1; }"#;
    let plugins = [("first", ready), ("second", ready)];
    let fixture = Fixture::new(&plugins, &conf("1.1.0", ""));
    fixture.cni.status().await.unwrap();
    assert_eq!(calls(&fixture), ["STATUS first", "STATUS second"]);
    let input = input_of(&fixture, "STATUS first ");
    assert_eq!(
        (&input["name"], &input["cniVersion"]),
        (&json!("pods"), &json!("1.1.0"))
    );
    fs::write(fixture.dir.path().join("down"), "").unwrap();
    let error = fixture.cni.status().await.unwrap_err().to_string();
    assert!(error.contains("no route to the store"), "{error}");

    let older = Fixture::new(&plugins, CONF);
    fs::write(older.dir.path().join("down"), "").unwrap();
    older.cni.status().await.unwrap();
    assert!(older.log().is_empty());
}

#[tokio::test]
async fn garbage_is_collected_with_the_pods_that_are_there() {
    let add = async |fixture: &Fixture| {
        fixture
            .cni
            .add(Fixture::attachment(), &pod())
            .await
            .unwrap();
        let _ = fs::remove_file(fixture.dir.path().join("log"));
    };
    let plugins = [("first", RESULT), ("second", "exit 1")];
    let first_only = |more: &str| {
        format!(
            r#"{{"cniVersion":"1.1.0","name":"pods"{more},"plugins":[{{"type":"first","capabilities":{{"x":true}}}}]}}"#
        )
    };
    let fixture = Fixture::new(&plugins, &first_only(""));
    add(&fixture).await;
    let valid = || vec!["pod1".to_owned(), "never-added".to_owned()];
    fixture.cni.collect(valid).await.unwrap();
    let input = input_of(&fixture, "GC first ");
    let pod1 = json!([{"containerID": "pod1", "ifname": "eth0"}]);
    assert_eq!(input["cni.dev/valid-attachments"], pod1);
    assert_eq!(input["cni.dev/attachments"], pod1);
    assert!(input.get("capabilities").is_none());
    // Pods of another network are not this one's business.
    let renamed = first_only("").replace("\"pods\"", "\"others\"");
    fs::write(fixture.dir.path().join("conf/10.conflist"), renamed).unwrap();
    fs::remove_file(fixture.dir.path().join("log")).unwrap();
    fixture.cni.collect(valid).await.unwrap();
    let input = input_of(&fixture, "GC first ");
    assert_eq!(input["cni.dev/valid-attachments"], json!([]));

    // One that fails keeps no other from it.
    let both = conf("1.1.0", "")
        .replace("first", "third")
        .replace("second", "first");
    let both = both.replace("third", "second");
    let fixture = Fixture::new(&plugins, &both);
    assert!(fixture.cni.collect(Vec::new).await.is_err());
    assert_eq!(calls(&fixture), ["GC second", "GC first"]);

    for config in [first_only(r#","disableGC":true"#), conf("1.0.0", "")] {
        let fixture = Fixture::new(&plugins, &config);
        fixture.cni.collect(valid).await.unwrap();
        assert!(fixture.log().is_empty());
    }
}

#[tokio::test]
async fn a_check_runs_with_what_the_pod_was_added_by() {
    let broken =
        r#"[ $CNI_COMMAND != CHECK ] || { echo '{"code":100,"msg":"no address"}'; exit 1; }"#;
    let second = format!("{broken}\n{RESULT}");
    let plugins = [("first", RESULT), ("second", second.as_str())];
    let fixture = Fixture::new(&plugins, &conf("0.4.0", ""));
    fixture.cni.check(Fixture::attachment()).await.unwrap();
    fixture
        .cni
        .add(Fixture::attachment(), &pod())
        .await
        .unwrap();
    fs::write(fixture.dir.path().join("conf/10.conflist"), "{").unwrap();
    let error = fixture.cni.check(Fixture::attachment()).await.unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
    assert_eq!(calls(&fixture)[2..], ["CHECK first", "CHECK second"]);
    let input = input_of(&fixture, "CHECK second ");
    assert_eq!(input["prevResult"]["ips"][0]["address"], "10.1.0.2/16");
    assert_eq!(input["runtimeConfig"]["portMappings"][0]["hostPort"], 8080);

    for config in [conf("1.0.0", r#","disableCheck":true"#), conf("0.3.1", "")] {
        let fixture = Fixture::new(&plugins, &config);
        fixture
            .cni
            .add(Fixture::attachment(), &pod())
            .await
            .unwrap();
        fixture.cni.check(Fixture::attachment()).await.unwrap();
        assert_eq!(fixture.log().len(), 2);
    }
}

#[tokio::test]
async fn del_has_the_result_from_0_4_on_and_no_namespace_after_a_reboot() {
    let plugins = [
        ("first", "echo \"[$CNI_NETNS]\" >>$(dirname $0)/netns"),
        ("second", RESULT),
    ];
    for (version, has_result) in [("0.3.1", false), ("0.4.0", true)] {
        let fixture = Fixture::new(&plugins, &conf(version, ""));
        fixture
            .cni
            .add(Fixture::attachment(), &pod())
            .await
            .unwrap();
        let gone = Attachment {
            netns: PathBuf::new(),
            ..Fixture::attachment()
        };
        fixture.cni.del(gone).await.unwrap();
        let input = input_of(&fixture, "DEL first ");
        assert_eq!(input.get("prevResult").is_some(), has_result, "{version}");
        let seen = fs::read_to_string(fixture.dir.path().join("bin/netns")).unwrap();
        assert_eq!(seen, "[/run/netns/pod1]\n[]\n");
    }
}

#[tokio::test]
async fn a_result_without_a_version_has_the_configurations() {
    let bare = r#"[ $CNI_COMMAND = DEL ] || echo '{"ips":[{"address":"10.1.0.2/16"}]}'"#;
    let fixture = Fixture::new(&[("first", bare), ("second", "cat >/dev/null")], CONF);
    let result = fixture
        .cni
        .add(Fixture::attachment(), &pod())
        .await
        .unwrap();
    assert_eq!(result.addresses_of(POD_INTERFACE).len(), 1);
    let input = input_of(&fixture, "ADD second ");
    assert_eq!(input["prevResult"]["cniVersion"], "1.0.0");
}

#[tokio::test]
async fn annotations_and_the_cgroup_are_capabilities_too() {
    let declared = CONF.replace(
        "\"portMappings\":true",
        "\"io.kubernetes.cri.pod-annotations\":true,\"cgroupPath\":true",
    );
    let fixture = Fixture::new(&[("first", RESULT), ("second", RESULT)], &declared);
    let mut pod = pod();
    pod.annotations.insert("net/x".to_owned(), "y".to_owned());
    pod.linux = Some(bulkhead_proto::cri::LinuxPodSandboxConfig {
        cgroup_parent: "/kubepods/podx".to_owned(),
        ..Default::default()
    });
    fixture.cni.add(Fixture::attachment(), &pod).await.unwrap();
    let given = &input_of(&fixture, "ADD second ")["runtimeConfig"];
    assert_eq!(given["io.kubernetes.cri.pod-annotations"]["net/x"], "y");
    assert_eq!(given["cgroupPath"], "/kubepods/podx");
    assert!(given.get("portMappings").is_none());
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
