//! Containers that have processors of their own, in a VM: what the pod's cgroup, its VMM and its guest are
//! told as they come, change and go.

use bulkhead_proto::cri;
use tonic::Code;

use super::super::*;
use super::*;
use crate::{
    error::Grpc as _,
    number_set::NumberSet,
    sandbox::{Change, fit},
};

fn with_set(name: &str, cpus: &str) -> cri::CreateContainerRequest {
    let mut request = request(name, "one", &["serve"]);
    let linux = request
        .config
        .get_or_insert_default()
        .linux
        .get_or_insert_default();
    linux.resources = Some(set(cpus));
    request
}

fn set(cpus: &str) -> cri::LinuxContainerResources {
    // As much as the set has, as the kubelet's CPU manager gives it to one container alone.
    let count = NumberSet::parse(cpus).map_or(0, |set| set.len());
    cri::LinuxContainerResources {
        cpuset_cpus: cpus.to_owned(),
        cpu_shares: i64::try_from(count).unwrap() * 1024,
        ..Default::default()
    }
}

/// What a leaf has that is bound no longer: all that the node has, as the kernel takes no empty list.
const ALL: &str = "0-8";

fn leaf(node: &Node) -> String {
    let text = std::fs::read_to_string(node.leaf().join("cpuset.cpus")).unwrap();
    text.trim().to_owned()
}

/// As the daemon does it by itself when a container has come or gone.
fn look_again(daemon: &Daemon) {
    let pod = daemon.app.pods.ready(POD).unwrap();
    daemon
        .block_on(fit(&daemon.app, &pod, Change::Containers))
        .unwrap();
}

fn told(daemon: &Daemon, id: &str) -> String {
    let limits = daemon.status(id).resources.unwrap().linux.unwrap();
    limits.cpuset_cpus
}

/// The list a container was bound to last.
fn bound(list: &str) -> String {
    format!(r#"update {{"cpu":{{"cpus":"{list}"}}}}"#)
}

#[test]
fn containers_run_on_the_processors_that_the_kubelet_gives_them() {
    let node = Node::new();
    let daemon = node.daemon();
    let last = |calls: usize| node.guest.calls().split_off(calls);
    // Without a set nothing is said to anybody.
    let plain = daemon.create(request("p", "two", &["serve"])).unwrap();
    assert!(
        !node
            .guest
            .calls()
            .iter()
            .any(|call| call.starts_with("pin"))
    );
    assert_eq!(leaf(&node), "");
    daemon.remove(&plain).unwrap();

    let own = daemon.create(with_set("own", "2-3")).unwrap();
    assert_eq!(leaf(&node), "2-3");
    let calls = node.guest.calls();
    let pin = r#"pin [{"cpus":[2],"vcpus":[0]},{"cpus":[3],"vcpus":[1]}]"#;
    assert_eq!(calls[calls.len() - 2..], [pin.to_owned(), bound("0-1")]);
    assert_eq!(told(&daemon, &own), "2-3");

    // The shared pool beside it, and as it shrinks.
    let shared = daemon.create(with_set("shared", "0-1,4-7")).unwrap();
    assert_eq!(leaf(&node), "0-7");
    assert_eq!(node.guest.calls().last(), Some(&bound("2-7")));
    let before = node.guest.calls().len();
    daemon
        .block_on(update(&daemon.app, &shared, set("0-1,4,6")))
        .unwrap();
    assert_eq!(leaf(&node), "0-4,6");
    assert_eq!(told(&daemon, &shared), "0-1,4,6");
    let calls = last(before);
    assert!(calls.contains(&bound("2-5")), "{calls:?}");
    // What another has is not touched.
    assert!(!calls.contains(&bound("0-1")), "{calls:?}");

    // One without a set may use all.
    let free = daemon.create(request("free", "one", &["serve"])).unwrap();
    assert_eq!(
        (leaf(&node).as_str(), told(&daemon, &free).as_str()),
        ("0-8", "")
    );
    daemon.remove(&free).unwrap();
    look_again(&daemon);
    assert_eq!(leaf(&node), "0-4,6");

    // A daemon that starts anew makes up for what was lost, and changes nothing else.
    daemon.die();
    std::fs::write(node.leaf().join("cpuset.cpus"), "0").unwrap();
    let before = node.guest.calls().len();
    let daemon = node.daemon();
    look_again(&daemon);
    assert_eq!(leaf(&node), "0-4,6");
    let calls = last(before);
    assert!(calls.contains(&bound("0-1")) && calls.contains(&bound("2-5")));

    // One that ends or goes leaves its processors; with the last all stays as it is.
    daemon
        .block_on(start(Arc::clone(&daemon.app), &shared))
        .unwrap();
    node.guest.exit(&shared, 0);
    daemon.wait_exited(&shared);
    look_again(&daemon);
    assert_eq!(leaf(&node), "2-3");
    daemon.remove(&own).unwrap();
    look_again(&daemon);
    assert_eq!(leaf(&node), "2-3");
    daemon.remove(&shared).unwrap();
    daemon.assert_clean(&node);
}

#[test]
fn sets_that_cannot_be_had_are_refused_and_change_nothing() {
    let node = Node::new();
    let daemon = node.daemon();
    let own = daemon.create(with_set("own", "2-3")).unwrap();
    for (bad, words) in [
        ("a", "invalid argument"),
        ("3-1", "invalid argument"),
        ("0;1", "invalid argument"),
        ("60000", "numerical result out of range"),
        ("4096", "numerical result out of range"),
        ("0,4096", "numerical result out of range"),
    ] {
        let made = daemon.create(with_set("bad", bad)).unwrap_err();
        let updated = daemon.block_on(update(&daemon.app, &own, set(bad)));
        for error in [made, updated.unwrap_err()] {
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}: {error}");
            let text = error.to_string();
            assert!(
                text.contains(words) && text.contains("cpuset_cpus"),
                "{text}"
            );
        }
        let mut mems = with_set("mems", "");
        let linux = mems.config.as_mut().unwrap().linux.as_mut().unwrap();
        linux.resources.as_mut().unwrap().cpuset_mems = bad.to_owned();
        if !bad.starts_with('0') {
            let error = daemon.create(mems).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{bad}: {error}");
        }
    }
    assert_eq!(
        (leaf(&node).as_str(), told(&daemon, &own).as_str()),
        ("2-3", "2-3")
    );
    // What the pod may not use is left out, and not told.
    daemon
        .block_on(update(&daemon.app, &own, set("1-2")))
        .unwrap();
    let above = node.cgroups().join("bulkhead");
    std::fs::write(above.join("cpuset.cpus.effective"), "0-2\n").unwrap();
    daemon
        .block_on(update(&daemon.app, &own, set("2-3")))
        .unwrap();
    assert_eq!(
        (leaf(&node).as_str(), told(&daemon, &own).as_str()),
        ("2", "2")
    );

    // A step that fails: the creation is taken back, and an update too.
    node.guest.fail(&bound("1"), Code::Internal);
    daemon.create(with_set("fails", "0")).unwrap_err();
    assert_eq!(daemon.app.records.containers.list().len(), 1);
    look_again(&daemon);
    assert_eq!(leaf(&node), "2");
    node.guest.fail(&bound("0-1"), Code::Internal);
    daemon
        .block_on(update(&daemon.app, &own, set("0-1")))
        .unwrap_err();
    assert_eq!(told(&daemon, &own), "2");
    look_again(&daemon);
    assert_eq!(leaf(&node), "2");
    daemon.remove(&own).unwrap();
    daemon.assert_clean(&node);
}

/// Neither a failure nor the death of the daemon in between leaves a pod where nothing says it is: after
/// either, what is in force is known from the record alone.
#[test]
fn a_first_set_that_fails_is_taken_back() {
    let node = Node::new();
    let daemon = node.daemon();
    let plain = daemon.create(request("plain", "one", &["serve"])).unwrap();
    node.guest.fail(&bound("0"), Code::Internal);
    daemon
        .block_on(update(&daemon.app, &plain, set("2")))
        .unwrap_err();
    assert_eq!(told(&daemon, &plain), "");
    look_again(&daemon);
    assert_eq!(leaf(&node), ALL);
    let pod = daemon.app.records.sandboxes.get(POD).unwrap();
    assert!(!pod.placing && pod.placement.is_none());
    daemon.remove(&plain).unwrap();
    daemon.assert_clean(&node);
}

/// Pods that run through an upgrade have the sets in their records that the daemon of before did nothing about.
#[test]
fn a_vmm_that_cannot_pin_lets_its_containers_run_as_before() {
    let node = Node::new();
    let daemon = node.daemon();
    let own = daemon.create(with_set("own", "2-3")).unwrap();
    let pin = r#"pin [{"cpus":[2],"vcpus":[0]},{"cpus":[3],"vcpus":[1]},{"cpus":[0],"vcpus":[2]}]"#;
    node.guest.fail(pin, Code::Unimplemented);
    let other = daemon.create(with_set("other", "0")).unwrap();
    assert_eq!(leaf(&node), ALL);
    let pod = daemon.app.records.sandboxes.get(POD).unwrap();
    assert!(!pod.placing && pod.placement.is_none());
    // Nothing of it is repeated, once what was pinned before is forgotten.
    let anew =
        r#"pin [{"cpus":[0],"vcpus":[0]},{"cpus":[2],"vcpus":[1]},{"cpus":[3],"vcpus":[2]}]"#;
    node.guest.fail(anew, Code::Unimplemented);
    look_again(&daemon);
    assert_eq!(leaf(&node), ALL);
    let calls = node.guest.calls().len();
    look_again(&daemon);
    assert_eq!(node.guest.calls().len(), calls);
    for id in [&own, &other] {
        daemon.remove(id).unwrap();
    }
    daemon.assert_clean(&node);
}

#[test]
fn containers_that_cannot_be_kept_apart_are_refused() {
    let node = Node::new();
    let daemon = node.daemon();
    let made: Vec<_> = (0..8)
        .map(|n| {
            daemon
                .create(with_set(&format!("c{n}"), &n.to_string()))
                .unwrap()
        })
        .collect();
    let error = daemon.create(with_set("more", "8")).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert_eq!(daemon.app.records.containers.list().len(), 8);
    look_again(&daemon);
    assert_eq!(leaf(&node), "0-7");
    for id in made {
        daemon.remove(&id).unwrap();
    }
    daemon.assert_clean(&node);
}
