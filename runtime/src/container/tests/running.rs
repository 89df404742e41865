//! Containers that run, and daemons and guests that die.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::cri;
use tonic::Code;

use super::super::*;
use super::*;
use crate::error::Grpc as _;

#[test]
fn stop_asks_first_and_kills_then() {
    let node = Node::new();
    let daemon = node.daemon();
    let obeys = daemon.running("c1", &["serve"]);
    daemon.block_on(stop(&daemon.app, &obeys, 10)).unwrap();
    assert_eq!(daemon.status(&obeys).exit_code, 143);
    let stubborn = daemon.running("c2", &["stubborn"]);
    daemon.block_on(stop(&daemon.app, &stubborn, 1)).unwrap();
    assert_eq!(daemon.status(&stubborn).exit_code, 137);
    let at_once = daemon.running("c3", &["serve"]);
    daemon.block_on(stop(&daemon.app, &at_once, 0)).unwrap();
    daemon.block_on(stop(&daemon.app, &at_once, 0)).unwrap();
    let signals: Vec<_> = node
        .guest
        .calls()
        .into_iter()
        .filter(|call| call.starts_with("signal"))
        .collect();
    assert_eq!(signals, ["signal 15", "signal 15", "signal 9", "signal 9"]);
    let left = daemon.running("c4", &["stubborn"]);
    daemon.remove(&left).unwrap();
    assert!(daemon.app.records.containers.get(&left).is_none());
}

#[test]
fn commands() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.running("c", &["serve"]);
    let exec = |command: &[&str], timeout| {
        let command = command.iter().map(|s| (*s).to_owned()).collect();
        daemon.block_on(exec_sync(&daemon.app, &id, command, timeout))
    };
    let said = exec(&["say", "hi", "7"], 10).unwrap();
    assert_eq!(
        said,
        Output {
            stdout: b"hi".to_vec(),
            stderr: Vec::new(),
            exit_code: 7
        }
    );
    let flood = exec(&["flood", "20000000"], 0).unwrap();
    assert_eq!(
        flood.stdout.len(),
        16 * 1024 * 1024,
        "the rest was drained and dropped"
    );
    let late = exec(&["hang"], 1).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(exec(&[], 0).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(exec(&["x"], -1).unwrap_err().code(), Code::InvalidArgument);
    node.guest.fail("exec", Code::NotFound);
    assert_eq!(exec(&["none"], 0).unwrap_err().code(), Code::NotFound);
    // The command is forgotten; the container runs on.
    daemon.block_on(async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        while node.guest.processes() != [format!("{id}/")] {
            tick.tick().await;
        }
    });
    assert_eq!(
        daemon.status(&id).state,
        cri::ContainerState::ContainerRunning as i32
    );
    node.guest.exit(&id, 0);
    assert_eq!(daemon.wait_exited(&id).reason, "Completed");
    assert_eq!(
        exec(&["say", "hi", "0"], 1).unwrap_err().code(),
        Code::FailedPrecondition
    );
}

#[test]
fn the_daemon_dies_and_the_next_one_goes_on() {
    let node = Node::new();
    let daemon = node.daemon();
    let lives = daemon.running("lives", &["serve"]);
    let ends = daemon.running("ends", &["serve"]);
    let idle = daemon.create(request("idle", "two", &["serve"])).unwrap();
    node.guest.write(&lives, b"before\nhalf a");
    daemon.wait_written(&node, "lives.log", "before\n");
    daemon.die();

    node.guest.write(&lives, b" line\nmeanwhile\n");
    node.guest.write(&ends, b"last words");
    node.guest.exit(&ends, 4);

    let daemon = node.daemon();
    assert_eq!(daemon.wait_exited(&ends).exit_code, 4);
    assert_eq!(node.log("ends.log"), "last words\n");
    daemon.wait_written(&node, "lives.log", "before\nhalf a line\nmeanwhile\n");
    assert_eq!(
        daemon.status(&idle).state,
        cri::ContainerState::ContainerCreated as i32
    );
    daemon
        .block_on(start(Arc::clone(&daemon.app), &idle))
        .unwrap();
    let command = vec!["say".to_owned(), "hi".to_owned(), "0".to_owned()];
    daemon
        .block_on(exec_sync(&daemon.app, &lives, command, 5))
        .unwrap();
    node.guest.write(&lives, b"after\n");
    daemon.wait_written(
        &node,
        "lives.log",
        "before\nhalf a line\nmeanwhile\nafter\n",
    );
    for id in [lives, ends, idle] {
        daemon.remove(&id).unwrap();
    }
    daemon.assert_clean(&node);
}

#[test]
fn a_rotated_log_goes_on_in_the_new_file() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.running("c", &["serve"]);
    node.guest.write(&id, b"old\npart");
    daemon.wait_written(&node, "c.log", "old\n");
    let logs = node.dir.path().join("logs");
    std::fs::rename(logs.join("c.log"), logs.join("c.log.1")).unwrap();
    daemon.block_on(reopen_log(&daemon.app, &id)).unwrap();
    assert!(logs.join("c.log").exists());
    node.guest.write(&id, b" two\n");
    daemon.wait_written(&node, "c.log", "part two\n");
    assert_eq!(node.log("c.log.1"), "old\n");
    node.guest.exit(&id, 0);
    daemon.wait_exited(&id);
    let error = daemon.block_on(reopen_log(&daemon.app, &id)).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}

#[test]
fn a_guest_that_is_gone_takes_its_containers_along() {
    let node = Node::new();
    let daemon = node.daemon();
    let runs = daemon.running("c1", &["serve"]);
    let waits = daemon.create(request("c2", "one", &["serve"])).unwrap();
    node.guest.write(&runs, b"no newline");
    daemon.app.pods.remove(POD);
    daemon
        .block_on(pod_gone(&daemon.app, POD, "the VM crashed"))
        .unwrap();
    for id in [&runs, &waits] {
        let status = daemon.status(id);
        assert_eq!(
            (status.exit_code, status.message.as_str()),
            (137, "the VM crashed")
        );
    }
    daemon.block_on(stop(&daemon.app, &runs, 5)).unwrap();
    daemon.remove(&waits).unwrap();
    daemon.block_on(pod_removed(&daemon.app, POD)).unwrap();
    assert!(daemon.app.records.containers.is_empty());
    assert!(daemon.app.images.holders().is_empty());
}

#[test]
fn lists_and_filters() {
    let node = Node::new();
    let daemon = node.daemon();
    let one = daemon.running("c1", &["serve"]);
    let two = daemon.create(request("c2", "two", &["serve"])).unwrap();
    let ids = |filter: cri::ContainerFilter| -> Vec<String> {
        let found = list(&daemon.app, Some(&filter)).unwrap();
        found.into_iter().map(|container| container.id).collect()
    };
    let none = cri::ContainerFilter::default;
    assert_eq!(list(&daemon.app, None).unwrap().len(), 2);
    assert_eq!(
        ids(cri::ContainerFilter {
            id: one[..9].to_owned(),
            ..none()
        }),
        [one.as_str()]
    );
    let state = Some(cri::ContainerStateValue { state: 0 });
    assert_eq!(
        ids(cri::ContainerFilter { state, ..none() }),
        [two.as_str()]
    );
    let label_selector = [("app".to_owned(), "c2".to_owned())].into();
    assert_eq!(
        ids(cri::ContainerFilter {
            label_selector,
            ..none()
        }),
        [two.as_str()]
    );
    let pod_sandbox_id = "f".to_owned();
    assert!(
        ids(cri::ContainerFilter {
            pod_sandbox_id,
            ..none()
        })
        .is_empty()
    );

    let stats = daemon.block_on(list_stats(&daemon.app, None));
    assert_eq!(stats.len(), 2);
    let memory = stats[0].memory.as_ref().unwrap();
    assert_eq!(memory.available_bytes.as_ref().unwrap().value, 60);
    node.guest.fail("stats", Code::Internal);
    assert!(
        daemon.block_on(list_stats(&daemon.app, None)).is_empty(),
        "left out, not failed"
    );
}

#[test]
fn a_guest_that_does_not_answer_is_left_out_of_lists_of_statistics() {
    let node = Node::new();
    let daemon = node.daemon();
    daemon.running("c1", &["serve"]);
    let listed = || {
        let app = &daemon.app;
        let containers = daemon.block_on(list_stats(app, None)).len();
        let pods = daemon.block_on(crate::stats::list_pods(app, None)).len();
        let metrics = daemon.block_on(crate::stats::list_metrics(app)).len();
        (containers, pods, metrics)
    };
    assert_eq!(listed(), (1, 1, 1));
    node.guest.never_answer("stats");
    // Each list ends long before the minute that `block_on` gives it, without the pod.
    assert_eq!(listed(), (0, 0, 0));
}

#[test]
fn limits_change_in_guest_and_record() {
    let node = Node::new();
    let daemon = node.daemon();
    let id = daemon.running("c", &["serve"]);
    let asked = |memory| cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    daemon
        .block_on(update(&daemon.app, &id, asked(1 << 28)))
        .unwrap();
    let now = daemon.status(&id).resources.unwrap().linux.unwrap();
    assert_eq!(now.memory_limit_in_bytes, 1 << 28);
    assert!(
        node.guest
            .calls()
            .iter()
            .any(|call| call.contains(r#""limit":268435456"#))
    );
    let error = daemon
        .block_on(update(&daemon.app, &id, asked(5)))
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    node.guest.exit(&id, 0);
    daemon.wait_exited(&id);
    let error = daemon
        .block_on(update(&daemon.app, &id, asked(1 << 28)))
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}
