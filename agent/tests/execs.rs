//! Execs as wholes: killed with all that they started, ended without it, and gone without a trace.

// Tests fail by panicking, and say what they measured or why they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing
)]

#[allow(dead_code)] // each test program uses a part
#[macro_use]
mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bulkhead_proto::agent::*;
use bulkhead_proto::session::Frame;
use common::{
    DEADLINE, cgroup, collect, exec_request, frame, numbers, process, request_with, rest, spec,
    text,
};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::time::{Instant, interval, timeout};
use tonic::Code;

/// Three ways to stay: a child, one in a session of its own, one whose parent is gone.
const FAMILY: &str = "sleep 991 & busybox setsid sleep 992 & (busybox setsid sleep 993 &); \
                      echo ready; sleep 994; true";

/// The cgroups of a container's execs.
fn own_cgroups(container: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup(container)).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.filter(|path| path.is_dir()).collect()
}

/// The command lines of a container's processes, its execs' among them.
fn commands(container: &str) -> Vec<String> {
    let mut directories = own_cgroups(container);
    directories.push(cgroup(container));
    let mut commands = Vec::new();
    for directory in directories {
        let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            commands.push(line.replace('\0', " ").trim().to_owned());
        }
    }
    commands
}

fn runs(container: &str, command: &str) -> bool {
    commands(container)
        .iter()
        .any(|line| line.ends_with(command))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    let mut tick = interval(Duration::from_millis(10));
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        tick.tick().await;
    }
}

async fn ready(session: &mut UnixStream) {
    let (first, said) = frame(session).await;
    assert!(matches!(first, Frame::Output(_)), "{first:?}");
    assert!(said.starts_with(b"ready"), "{said:?}");
}

#[tokio::test]
async fn killing_an_exec_kills_all_its_descendants() {
    let mut agent = agent!();
    agent.create("k", "sleep 1000").await;
    agent.begin("k").await.unwrap();
    let wanted = exec_request("k", "e", &["sh", "-c", FAMILY]);
    let mut session = agent.exec(wanted).await.unwrap();
    ready(&mut session).await;
    for command in ["sleep 991", "sleep 992", "sleep 993"] {
        until(command, || runs("k", command)).await;
    }
    // A neighbour is not concerned.
    let wanted = exec_request("k", "other", &["sh", "-c", "echo ready; sleep 995"]);
    let mut other = agent.exec(wanted).await.unwrap();
    ready(&mut other).await;
    agent.signal("k", "e", 9).await;
    let (_, exit) = rest(session).await;
    assert_eq!((exit.code, exit.signal), (137, 9));
    // At once: a kill is reported as done when no process is left.
    let left = commands("k");
    assert!(
        !left
            .iter()
            .any(|line| line.contains("sleep 99") && !line.contains("995")),
        "{left:?}"
    );
    assert!(runs("k", "sleep 1000"), "{left:?}");
    assert!(left.iter().any(|line| line.contains("995")), "{left:?}");
    until("one cgroup", || own_cgroups("k").len() == 1).await;
    drop(other);
    until("no cgroup", || own_cgroups("k").is_empty()).await;
    // The id is free again.
    assert_eq!(agent.exec_sh("k", "e", "echo again").await.0, "again\n");
    agent.delete("k").await;
}

#[tokio::test]
async fn the_end_of_a_session_kills_the_exec_and_its_descendants() {
    let mut agent = agent!();
    agent.create("s", "sleep 1000").await;
    agent.begin("s").await.unwrap();
    for tty in [false, true] {
        let mut wanted = exec_request("s", "e", &["sh", "-c", FAMILY]);
        wanted.tty = tty;
        let mut session = agent.exec(wanted).await.unwrap();
        ready(&mut session).await;
        drop(session);
        until("no cgroup", || own_cgroups("s").is_empty()).await;
        assert_eq!(commands("s"), ["sleep 1000"]);
    }
    agent.delete("s").await;
}

#[tokio::test]
async fn background_processes_of_an_exec_live_on_and_their_cgroup_goes_with_them() {
    let mut agent = agent!();
    agent.create("b", "sleep 1000").await;
    agent.begin("b").await.unwrap();
    let (stdout, _, exit) = agent.exec_sh("b", "e", "sleep 991 & echo hi").await;
    assert_eq!((stdout.as_str(), exit.code), ("hi\n", 0));
    let mut wanted = exec_request("b", "t", &["sh", "-c", "trap '' HUP; sleep 992 & echo hi"]);
    wanted.tty = true;
    let session = agent.exec(wanted).await.unwrap();
    let (stdout, _, exit) = text(collect(session, false).await);
    assert_eq!((stdout.as_str(), exit.code), ("hi\r\n", 0));
    // The sessions are over; many others come and go.
    for _ in 0..3 {
        agent.exec_sh("b", "e", "true").await;
    }
    assert!(
        runs("b", "sleep 991") && runs("b", "sleep 992"),
        "{:?}",
        commands("b")
    );
    until("their cgroups alone", || own_cgroups("b").len() == 2).await;
    agent
        .exec_sh(
            "b",
            "e",
            "kill $(ps | grep '[s]leep 99' | while read p r; do echo $p; done)",
        )
        .await;
    until("no cgroup", || own_cgroups("b").is_empty()).await;
    // What still runs when the container goes does not hold it up.
    agent.exec_sh("b", "e", "sleep 993 &").await;
    agent.delete("b").await;
    assert!(!cgroup("b").exists());
}

fn zombies() -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('Z'))
        })
        .count()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[tokio::test]
async fn five_hundred_probes_in_a_row_leave_nothing() {
    let mut agent = agent!();
    agent.create("p", "sleep 1000").await;
    agent.begin("p").await.unwrap();
    let pid = agent.child.id();
    for n in 0..5 {
        agent.exec_sh("p", "warm", &format!("exit {n}")).await;
    }
    until("the first to be gone", || own_cgroups("p").is_empty()).await;
    let before = (zombies(), descriptors(pid));
    let began = Instant::now();
    for n in 0..500u32 {
        // Most as a kubelet's probes are; some with a terminal, some that cannot run.
        match n % 25 {
            7 => {
                let mut wanted = exec_request("p", "probe", &["true"]);
                wanted.tty = true;
                let session = agent.exec(wanted).await.unwrap();
                assert_eq!(collect(session, false).await.2.code, 0);
            }
            13 => {
                let refused = agent.exec(exec_request("p", "probe", &["nosuch"])).await;
                assert_eq!(refused.unwrap_err().code(), Code::NotFound);
            }
            _ => {
                let session = agent
                    .exec(exec_request("p", "probe", &["true"]))
                    .await
                    .unwrap();
                assert_eq!(collect(session, false).await.2.code, 0);
            }
        }
    }
    eprintln!("500 execs in {:?}", began.elapsed());
    until("no cgroup", || own_cgroups("p").is_empty()).await;
    // The last session's descriptors close when the agent comes to it.
    until("no descriptor and no zombie more than before", || {
        descriptors(pid) <= before.1 && zombies() <= before.0
    })
    .await;
    agent.delete("p").await;
}

#[tokio::test]
async fn the_containers_limits_and_counts_hold_for_execs() {
    let mut agent = agent!();
    // Its first process reaps, as an init must: the dead count for pids.max until somebody does.
    let mut wanted = spec(&["sh", "-c", "while :; do sleep 1000 & wait; done"]);
    wanted["linux"]["resources"] = json!({
        "devices": [{"allow": false, "access": "rwm"}],
        "pids": {"limit": 12},
        "memory": {"limit": 32 << 20, "swap": 32 << 20}
    });
    agent.create_with(request_with("l", &wanted)).await.unwrap();
    agent.begin("l").await.unwrap();
    let script = "n=0; while [ $n -lt 20 ]; do sleep 990 & n=$((n+1)); done; sleep 990";
    let wanted = exec_request("l", "forks", &["sh", "-c", script]);
    let session = agent.exec(wanted).await.unwrap();
    let path = cgroup("l").join("pids.events");
    let refused = || fs::read_to_string(&path).is_ok_and(|text| !text.contains("max 0\n"));
    until("the limit of processes", refused).await;
    drop(session);
    until("the processes to be gone", || own_cgroups("l").is_empty()).await;
    let count = || fs::read_to_string(cgroup("l").join("pids.current")).unwrap();
    until("the dead to be reaped", || count().trim() == "2").await;
    let hungry = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let (.., exit) = agent.exec_sh("l", "hungry", hungry).await;
    assert_eq!(exit.code, 137);
    let stats = agent
        .client
        .stats(StatsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let figures = &stats.containers[0];
    assert_eq!(figures.oom_kills, 1);
    assert!(figures.pids <= 2, "{figures:?}");
    agent.delete("l").await;
}

/// A container that may write its cgroups, as a privileged one.
fn writable_cgroups(script: &str) -> serde_json::Value {
    let mut wanted = spec(&["sh", "-c", script]);
    let mounts = wanted["mounts"].as_array_mut().unwrap();
    let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup");
    cgroup.unwrap()["options"] = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
    wanted
}

#[tokio::test]
async fn execs_work_in_containers_that_keep_cgroups_of_their_own() {
    let mut agent = agent!();
    let cases = [
        // As dockerd's entry point and systemd do it.
        (
            "nested",
            "cd /sys/fs/cgroup; mkdir init; echo $$ > init/cgroup.procs; \
             echo +pids 2>/dev/null > cgroup.subtree_control; echo ready; sleep 1000",
        ),
        // Below a cgroup of threads there can be none of processes.
        (
            "threads",
            "cd /sys/fs/cgroup; mkdir t; echo threaded > t/cgroup.type; echo ready; sleep 1000",
        ),
        (
            "none",
            "echo 0 > /sys/fs/cgroup/cgroup.max.descendants; echo ready; sleep 1000",
        ),
        // The names are taken, by processes that are no exec's.
        (
            "taken",
            "cd /sys/fs/cgroup; mkdir exec-0 exec-1; echo $$ > exec-0/cgroup.procs; \
             sleep 998 & echo ready; sleep 1000",
        ),
    ];
    for (id, script) in cases {
        agent
            .create_with(request_with(id, &writable_cgroups(script)))
            .await
            .unwrap();
        agent.begin(id).await.unwrap();
        let mut output = agent.output(id, 0).await.unwrap();
        ready(&mut output).await;
        let done = agent.exec_sh(id, "e", "echo hi; exit 3").await;
        assert_eq!(
            (done.0.as_str(), done.2.code),
            ("hi\n", 3),
            "{id}: {done:?}"
        );
        let mut session = agent
            .exec(exec_request(
                id,
                "e",
                &["sh", "-c", "echo ready; sleep 991; true"],
            ))
            .await
            .unwrap();
        ready(&mut session).await;
        drop(session);
        let whole = matches!(id, "nested" | "taken");
        until("the exec to be gone", || !runs(id, "sleep 991; true")).await;
        if whole {
            until("its child to be gone", || !runs(id, "sleep 991")).await;
        }
        // An exec's kill hits nothing of the container's own.
        until("the container's own", || runs(id, "sleep 1000")).await;
        assert_eq!(runs(id, "sleep 998"), id == "taken", "{:?}", commands(id));
        agent.delete(id).await;
        assert!(!cgroup(id).exists(), "{id}");
    }
}

#[tokio::test]
async fn an_exec_in_a_dying_or_deleted_container_fails_with_a_clear_error() {
    let mut agent = agent!();
    for round in 0..6 {
        agent.create("d", "sleep 1000").await;
        agent.begin("d").await.unwrap();
        let execs = (0..8).map(|n| {
            let wanted = exec_request("d", &format!("e{n}"), &["sleep", "990"]);
            agent.exec(wanted)
        });
        let execs = futures::future::join_all(execs);
        let mut client = agent.client.clone();
        let end = async {
            if round % 2 == 0 {
                let request = SignalProcessRequest {
                    process: Some(process("d", "")),
                    signal: 9,
                    all: false,
                };
                client.signal_process(request).await.unwrap();
            } else {
                let request = DeleteContainerRequest {
                    container_id: "d".into(),
                    ..DeleteContainerRequest::default()
                };
                client.delete_container(request).await.unwrap();
            }
        };
        let (execs, ()) = tokio::join!(execs, end);
        for exec in execs {
            match exec {
                // It was earlier, and dies with the container.
                Ok(session) => {
                    let (_, exit) = rest(session).await;
                    assert_eq!(exit.signal, 9, "{exit:?}");
                }
                Err(status) => assert!(
                    matches!(status.code(), Code::FailedPrecondition | Code::NotFound),
                    "{status:?}"
                ),
            }
        }
        if round % 2 == 0 {
            let late = agent.exec(exec_request("d", "late", &["true"])).await;
            let late = late.unwrap_err();
            assert_eq!(late.code(), Code::FailedPrecondition, "{late:?}");
            assert!(late.message().contains("exited"), "{late:?}");
        }
        agent.delete("d").await;
        assert!(!cgroup("d").exists(), "round {round}");
    }
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // a reader that is slow, not a wait for anything
async fn terminal_output_is_complete_however_slow_the_reader() {
    let mut agent = agent!();
    agent.create("t", "sleep 1000").await;
    agent.begin("t").await.unwrap();
    let expected = numbers(40_000, "\r\n");
    // Somebody else who holds the terminal must not make a difference.
    for script in ["seq 1 40000", "trap '' HUP; sleep 991 & seq 1 40000"] {
        let mut wanted = exec_request("t", "e", &["sh", "-c", script]);
        wanted.tty = true;
        let mut session = agent.exec(wanted).await.unwrap();
        let (mut got, mut next_pause) = (Vec::new(), 150_000);
        let exit = loop {
            // The agent's side is full at the process's end, which is some way before the reader's.
            let left = expected.len() - got.len();
            if left < next_pause && left > 5_000 {
                next_pause = left.saturating_sub(10_000);
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            let (next, body) = frame(&mut session).await;
            match next {
                Frame::Alive => {}
                Frame::Output(_) => got.extend_from_slice(&body),
                Frame::Exit(_) => break bulkhead_proto::session::message::<Exit>(&body).unwrap(),
            }
        };
        assert!(
            got == expected.as_bytes(),
            "{} of {}",
            got.len(),
            expected.len()
        );
        assert_eq!(exit.code, 0);
    }
    agent.delete("t").await;
}

#[tokio::test]
async fn a_terminal_closed_for_a_while_keeps_working() {
    let mut agent = agent!();
    agent.create("r", "sleep 1000").await;
    agent.begin("r").await.unwrap();
    let script = "t=$(tty); exec </dev/null >/dev/null 2>&1; sleep 1; echo late >$t; exit 4";
    let mut wanted = exec_request("r", "e", &["sh", "-c", script]);
    wanted.tty = true;
    let session = agent.exec(wanted).await.unwrap();
    let (stdout, _, exit) = text(timeout(DEADLINE, collect(session, false)).await.unwrap());
    assert_eq!((stdout.as_str(), exit.code), ("late\r\n", 4));
    agent.delete("r").await;
}
