//! The life of pods against a fake VMM: that what goes wrong at any step leaves nothing behind and
//! gives the right code, that Stop and Remove may be repeated, that a new daemon takes pods up.
//!
//! Needs root and a cgroup version 2 hierarchy; without them each test says so and counts as skipped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "helpers of tests may fail by panicking, and say why they skip"
)]

mod common;

use std::time::{Duration, Instant};

use bulkhead_proto::cri as v1;
use common::Daemon;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_up_is_shown_and_goes() {
    let Some(mut daemon) = Daemon::start("").await else {
        return;
    };
    let id = daemon.run_pod("web").await.unwrap();

    let pods = daemon.pods().await;
    assert_eq!(pods.len(), 1);
    assert_eq!((pods[0].id.as_str(), pods[0].state), (id.as_str(), 0));
    let status = daemon.status(&id[..8]).await.unwrap();
    let shown = status.status.unwrap();
    assert_eq!(shown.metadata.unwrap().name, "web");
    assert!(shown.created_at > 0);
    let info: serde_json::Value = serde_json::from_str(&status.info["info"]).unwrap();
    let phases: Vec<_> = info["phases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].clone())
        .collect();
    for wanted in [
        "vmm process",
        "boot",
        "guest kernel",
        "guest set-up",
        "total",
    ] {
        assert!(
            phases.iter().any(|p| p == wanted),
            "{phases:?} without {wanted}"
        );
    }
    let calls = daemon.calls(&id);
    assert!(
        calls.contains("hostname: \"web\"") && calls.contains(&id),
        "{calls}"
    );
    assert!(daemon.holds() > 0);

    let again = daemon.run_pod("web").await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(again.message().contains(&id), "{}", again.message());

    daemon.stop_pod(&id).await.unwrap();
    daemon.stop_pod(&id).await.unwrap();
    assert_eq!(daemon.pods().await[0].state, 1);
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.remove_pod(&id).await.unwrap();
    daemon.remove_pod(&id).await.unwrap();
    assert!(daemon.pods().await.is_empty());
    assert_eq!(daemon.status(&id).await.unwrap_err().code(), Code::NotFound);
    // The name is free again.
    let id = daemon.run_pod("web").await.unwrap();
    daemon.remove_pod(&id).await.unwrap();
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_each_step_leaves_nothing() {
    let table = [
        ("refuse", Code::FailedPrecondition, "no ELF file"),
        ("mute", Code::Internal, "ended without a word"),
        ("panic", Code::Internal, "Kernel panic - not syncing: fake"),
        ("vanish", Code::Internal, "killed"),
        ("silent", Code::DeadlineExceeded, "guest: hello"),
        (
            "setup-fails",
            Code::InvalidArgument,
            "there is no such sysctl",
        ),
        ("setup-dies", Code::Internal, "ended while it started"),
    ];
    for (mode, code, word) in table {
        let Some(mut daemon) = Daemon::start(mode).await else {
            return;
        };
        let start = Instant::now();
        let error = daemon.run_pod("p").await.unwrap_err();
        assert_eq!(error.code(), code, "{mode}: {}", error.message());
        assert!(
            error.message().contains(word),
            "{mode}: {}",
            error.message()
        );
        assert!(start.elapsed() < common::PATIENCE, "{mode}");
        assert!(daemon.pods().await.is_empty(), "{mode}");
        assert_eq!(daemon.holds(), 0, "{mode}: {:?}", daemon.held());
        daemon.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_kernel_is_named() {
    let Some(mut daemon) = Daemon::start_with("", "/nonexistent/k").await else {
        return;
    };
    let error = daemon.run_pod("p").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(
        error.message().contains("/nonexistent/k"),
        "{}",
        error.message()
    );
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    let conditions = daemon.conditions().await;
    assert!(!conditions[0].status && conditions[0].message.contains("/nonexistent/k"));
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_that_does_not_stop_is_killed() {
    let Some(mut daemon) = Daemon::start("stubborn").await else {
        return;
    };
    let id = daemon.run_pod("p").await.unwrap();
    let start = Instant::now();
    daemon.remove_pod(&id).await.unwrap();
    let took = start.elapsed();
    assert!(
        took > Duration::from_millis(900) && took < common::PATIENCE,
        "{took:?}"
    );
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_dies_makes_its_pod_not_ready() {
    let Some(mut daemon) = Daemon::start("").await else {
        return;
    };
    let id = daemon.run_pod("p").await.unwrap();
    daemon.kill_vmm(&id).await;
    daemon.until_state(&id, 1).await;
    let status = daemon.status(&id).await.unwrap();
    assert!(status.info["info"].contains("killed"), "{:?}", status.info);
    daemon.remove_pod(&id).await.unwrap();
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_daemon_takes_pods_up_and_marks_the_dead() {
    let Some(mut daemon) = Daemon::start("").await else {
        return;
    };
    let lives = daemon.run_pod("lives").await.unwrap();
    let dies = daemon.run_pod("dies").await.unwrap();
    let pid = daemon.vmm_pid(&dies).await;
    daemon.kill_daemon().await;
    common::kill(pid);
    // What an earlier daemon's lost records left.
    let stray = daemon.config.paths.pod("0123456789abcdef0123456789abcdef");
    std::fs::create_dir_all(stray.join("vm")).unwrap();
    daemon.start_daemon().await;

    assert!(!stray.exists());
    // The kernel may take a moment to say that the killed process is gone.
    let mut turn = tokio::time::interval(std::time::Duration::from_millis(100));
    let taken_up = async {
        loop {
            let states: Vec<_> = daemon
                .pods()
                .await
                .into_iter()
                .map(|p| (p.id, p.state))
                .collect();
            if states.contains(&(lives.clone(), 0)) && states.contains(&(dies.clone(), 1)) {
                return;
            }
            turn.tick().await;
        }
    };
    tokio::time::timeout(common::PATIENCE, taken_up)
        .await
        .unwrap();
    let again = daemon.run_pod("lives").await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    daemon.remove_pod(&dies).await.unwrap();
    // Ended in order, it leaves the pod alone just so.
    daemon.stop_daemon().await;
    daemon.start_daemon().await;
    assert_eq!(
        daemon.status(&lives).await.unwrap().status.unwrap().state,
        0
    );
    daemon.kill_vmm(&lives).await;
    daemon.until_state(&lives, 1).await;
    daemon.remove_pod(&lives).await.unwrap();
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_and_a_client_that_goes_away() {
    let Some(mut daemon) = Daemon::start("").await else {
        return;
    };
    let names: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
    let starts = names.iter().map(|name| {
        let mut other = daemon.clone_client();
        async move { other.run_pod(name).await }
    });
    let ids: Vec<String> = futures::future::join_all(starts)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(daemon.pods().await.len(), 10);

    // The client goes; the pod comes up or is undone, but is never half there.
    let mut gone = daemon.clone_client();
    let given_up = tokio::time::timeout(Duration::from_millis(30), gone.run_pod("left")).await;
    drop(given_up);
    for id in ids {
        daemon.remove_pod(&id).await.unwrap();
    }
    let end = Instant::now() + common::PATIENCE;
    while let Some(left) = daemon.pods().await.first() {
        daemon.remove_pod(&left.id.clone()).await.unwrap();
        assert!(Instant::now() < end);
    }
    daemon.until_nothing_held().await;
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_daemon_and_a_stale_socket() {
    let Some(mut daemon) = Daemon::start("").await else {
        return;
    };
    let second = daemon.second().await;
    assert!(second.contains("another daemon runs"), "{second}");
    daemon.stop_daemon().await;
    drop(std::os::unix::net::UnixListener::bind(&daemon.config.paths.socket).unwrap());
    assert!(daemon.config.paths.socket.exists());
    daemon.start_daemon().await;
    let version = daemon.version().await;
    assert_eq!(
        (
            version.runtime_name.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("bulkhead", "v1")
    );
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_below_zero_and_unknown_handlers_are_refused() {
    let Some(mut daemon) = Daemon::start("").await else {
        return;
    };
    let mut request = daemon.request("p");
    let resources = v1::LinuxContainerResources {
        memory_limit_in_bytes: -(32 << 20),
        ..Default::default()
    };
    request
        .config
        .as_mut()
        .unwrap()
        .linux
        .as_mut()
        .unwrap()
        .resources = Some(resources);
    let error = daemon.run(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error
            .message()
            .contains("memory_limit_in_bytes is -33554432"),
        "{}",
        error.message()
    );

    let mut request = daemon.request("p");
    request.runtime_handler = "runc".to_owned();
    assert_eq!(
        daemon.run(request).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut request = daemon.request("p");
    request
        .config
        .as_mut()
        .unwrap()
        .linux
        .as_mut()
        .unwrap()
        .cgroup_parent = "/a/../b".to_owned();
    assert_eq!(
        daemon.run(request).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_the_daemon_was_killed_in_is_undone_by_the_next() {
    let Some(mut daemon) = Daemon::start("silent").await else {
        return;
    };
    let mut other = daemon.clone_client();
    let start = tokio::spawn(async move { other.run_pod("p").await });
    // The VMM runs: it has written its console.
    let end = Instant::now() + common::PATIENCE;
    let console = loop {
        let found = daemon
            .held()
            .into_iter()
            .map(|dir| dir.join("vm/console.log"));
        if let Some(console) = found.into_iter().find(|path| path.exists()) {
            break console;
        }
        assert!(Instant::now() < end, "{}", daemon.log());
        tokio::task::yield_now().await;
    };
    daemon.kill_daemon().await;
    assert!(start.await.unwrap().is_err());
    assert!(console.exists(), "the VMM went with the daemon");
    daemon.start_daemon().await;
    assert!(daemon.pods().await.is_empty());
    assert_eq!(daemon.holds(), 0, "{:?}", daemon.held());
    daemon.end().await;
}
