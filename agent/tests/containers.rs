//! Containers through the agent's service: life cycle, errors, execs, figures, events. What confines
//! them is in `confinement.rs`.

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

use bulkhead_proto::agent::*;
use common::{cgroup, collect, exec_request, process, request, request_with, spec, text};
use serde_json::json;
use tonic::Code;

#[tokio::test]
async fn a_deleted_container_leaves_nothing() {
    let mut agent = agent!(setup);
    agent
        .create("c1", "echo out; echo err >&2; echo $$; exit 7")
        .await;
    let states = agent
        .client
        .list_containers(ListContainersRequest {})
        .await
        .unwrap();
    assert_eq!(states.into_inner().containers[0].phase(), Phase::Created);
    let cgroup = cgroup("c1");
    assert!(cgroup.exists());
    agent.begin("c1").await.unwrap();
    let (stdout, stderr, exit) = agent.collect("c1").await;
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n1\n", "err\n"));
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
    let states = agent
        .client
        .list_containers(ListContainersRequest {})
        .await
        .unwrap();
    assert_eq!(states.into_inner().containers[0].phase(), Phase::Exited);
    let mut events = agent
        .client
        .events(EventsRequest { from_sequence: 0 })
        .await
        .unwrap()
        .into_inner();
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(event.container_id, "c1");
    assert!(matches!(event.what, Some(event::What::Exited(end)) if end.code == 7));

    agent.delete("c1").await;
    agent.delete("c1").await;
    assert!(!cgroup.exists());
    for left in ["containers/c1", "scratch/c1", "state/c1"] {
        assert!(!agent.state().join(left).exists(), "{left}");
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("containers/c1"));
    // The id can be used again.
    assert_eq!(agent.run("c1", "echo again").await.0, "again\n");
}

#[tokio::test]
async fn an_implied_directory_keeps_the_attributes_of_the_layers_below() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mut agent = agent!(setup);
    let layers = agent.state().join("layers");
    for layer in ["top", "opaque"] {
        std::fs::create_dir_all(layers.join(layer).join("tmp")).unwrap();
        std::fs::write(layers.join(layer).join("tmp/file"), layer).unwrap();
    }
    let shared = layers.join("busybox/tmp");
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
    chown(&shared, Some(5), Some(6)).unwrap();
    let show = "test -d /tmp && ls -ldn /tmp | head -c 200";
    for (layer, expected) in [("top", "drwxrwxrwt"), ("opaque", "drwxr-xr-x")] {
        let opaque = layer == "opaque";
        if opaque {
            let value = rustix::fs::XattrFlags::empty();
            let path = layers.join(layer).join("tmp");
            rustix::fs::setxattr(path, "trusted.overlay.opaque", b"y", value).unwrap();
        }
        let mut wanted = request(layer, &["sh", "-c", show]);
        wanted.layers.push(layer.into());
        wanted.implied_directories = vec![ImpliedDirectories {
            layer: layer.into(),
            paths: vec![b"tmp".as_slice().into()],
        }];
        agent.create_with(wanted).await.unwrap();
        agent.begin(layer).await.unwrap();
        let (stdout, stderr, _) = agent.collect(layer).await;
        assert!(stdout.starts_with(expected), "{layer}: {stdout}{stderr}");
        let owner: Vec<_> = stdout.split_whitespace().skip(2).take(2).collect();
        assert_eq!(
            owner,
            if opaque { ["0", "0"] } else { ["5", "6"] },
            "{layer}: {stdout}"
        );
        agent.delete(layer).await;
    }
}

#[tokio::test]
async fn failures_have_their_codes_and_leave_nothing() {
    let mut agent = agent!(setup);
    let code = |result: Result<CreateContainerResponse, tonic::Status>| result.unwrap_err().code();
    assert_eq!(
        code(agent.create_with(request("e", &[])).await),
        Code::InvalidArgument
    );
    let mut garbage = request("e", &["sh"]);
    garbage.oci_spec = b"{".as_slice().into();
    assert_eq!(
        code(agent.create_with(garbage).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(agent.create_with(request("../e", &["sh"])).await),
        Code::InvalidArgument
    );
    let mut big = spec(&["sh"]);
    big["linux"]["resources"]["unified"] = json!({"memory.nonsense": "1"});
    assert_eq!(
        code(agent.create_with(request_with("e", &big)).await),
        Code::InvalidArgument
    );

    for left in ["containers/e", "scratch/e"] {
        assert!(!agent.state().join(left).exists(), "{left}");
    }
    assert!(!cgroup("e").exists());
    agent.create("e", "true").await;
    assert_eq!(
        code(agent.create_with(request("e", &["sh"])).await),
        Code::AlreadyExists
    );
    assert_eq!(
        agent.begin("other").await.unwrap_err().code(),
        Code::NotFound
    );
    agent.begin("e").await.unwrap();
    assert_eq!(
        agent.begin("e").await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    agent.delete("e").await;
}

/// As on other runtimes: the container is there, and its start says why it cannot be.
#[tokio::test]
async fn missing_commands_and_users_fail_the_start() {
    let mut agent = agent!(setup);
    let nobody = User {
        name: "nobody-here".into(),
        ..User::default()
    };
    for (args, user, code, words) in [
        (
            "absent",
            None,
            Code::NotFound,
            "exec: \"absent\": executable file not found in $PATH",
        ),
        (
            "",
            None,
            Code::NotFound,
            "executable file not found in $PATH",
        ),
        (
            "/bin/absent",
            None,
            Code::NotFound,
            "exec: \"/bin/absent\": stat /bin/absent: no such file or directory",
        ),
        (
            "plain",
            None,
            Code::PermissionDenied,
            "exec: \"plain\": permission denied",
        ),
        (
            "/bin",
            None,
            Code::PermissionDenied,
            "exec: \"/bin\": is a directory",
        ),
        (
            "sh",
            Some(nobody),
            Code::InvalidArgument,
            "unable to find user nobody-here: no matching entries in passwd file",
        ),
    ] {
        let mut request = request("e", &[args]);
        if user.is_some() {
            request.user = user;
        }
        agent.create_with(request).await.unwrap();
        let refused = agent.begin("e").await.unwrap_err();
        assert_eq!(refused.code(), code, "{args}: {}", refused.message());
        assert!(refused.message().ends_with(words), "{}", refused.message());
        agent.delete("e").await;
    }
}

#[tokio::test]
async fn a_program_the_kernel_rejects_fails_the_start() {
    let mut agent = agent!(setup);
    let layer = agent.state().join("layers/busybox/bin/script");
    std::fs::write(&layer, "#!/bin/no-such-interpreter\n").unwrap();
    std::fs::set_permissions(&layer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    agent.create_with(request("s", &["script"])).await.unwrap();
    assert_eq!(agent.begin("s").await.unwrap_err().code(), Code::NotFound);
    let (_, _, exit) = agent.collect("s").await;
    assert_ne!(exit.code, 0);
    agent.delete("s").await;
}

#[tokio::test]
async fn the_end_of_the_first_process_kills_the_rest() {
    let mut agent = agent!(setup);
    // In the guest's PID namespace nothing else would end the second one.
    let mut wanted = request("r", &["sh", "-c", "sleep 1000 & exit 0"]);
    wanted.pid_mode = PidMode::Node.into();
    agent.create_with(wanted).await.unwrap();
    agent.begin("r").await.unwrap();
    let (_, _, exit) = agent.collect("r").await;
    assert_eq!(exit.code, 0);
    let deadline = tokio::time::Instant::now() + common::DEADLINE;
    bulkhead_agent::container::cgroup::wait_empty(&cgroup("r"), deadline)
        .await
        .unwrap();
    agent.delete("r").await;
}

#[tokio::test]
async fn containers_can_share_a_pid_namespace() {
    let mut agent = agent!(setup);
    for id in ["a", "b"] {
        let mut wanted = request(id, &["sleep", "1000"]);
        wanted.pid_mode = PidMode::Pod.into();
        agent.create_with(wanted).await.unwrap();
        agent.begin(id).await.unwrap();
    }
    let (list, stderr, _) = agent.exec_sh("a", "ps", "ps").await;
    assert_eq!(list.matches("sleep 1000").count(), 2, "{list}{stderr}");

    let mut target = request("t", &["ps"]);
    target.pid_mode = PidMode::Target.into();
    target.pid_target = "b".into();
    agent.create_with(target).await.unwrap();
    agent.begin("t").await.unwrap();
    let (list, ..) = agent.collect("t").await;
    assert_eq!(list.matches("sleep 1000").count(), 2, "{list}");
    for id in ["t", "a", "b"] {
        agent.delete(id).await;
    }
}

#[tokio::test]
async fn execs_join_the_container_and_their_failures_have_codes() {
    let mut agent = agent!(setup);
    let mut own = spec(&["sh", "-c", "sleep 1000"]);
    own["process"]["env"] = json!(["PATH=/bin", "A=b"]);
    own["process"]["cwd"] = json!("/gone");
    agent.create_with(request_with("x", &own)).await.unwrap();
    let early = agent.exec(exec_request("x", "1", &["true"])).await;
    assert_eq!(early.unwrap_err().code(), Code::FailedPrecondition);
    agent.begin("x").await.unwrap();
    let wanted = exec_request("x", "1", &["sh", "-c", "echo $A $PATH; pwd; exit 3"]);
    let session = agent.exec(wanted).await.unwrap();
    let (stdout, _, exit) = text(collect(session, false).await);
    assert_eq!((stdout.as_str(), exit.code), ("b /bin\n/gone\n", 3));
    let held = exec_request("x", "held", &["sleep", "1000"]);
    let held = agent.exec(held).await.unwrap();
    let again = agent.exec(exec_request("x", "held", &["true"])).await;
    assert_eq!(again.unwrap_err().code(), Code::AlreadyExists);
    drop(held);
    for (args, code) in [
        (&["absent"][..], Code::NotFound),
        (&["plain"], Code::PermissionDenied),
        (&[], Code::InvalidArgument),
    ] {
        let failed = agent.exec(exec_request("x", "2", args)).await;
        assert_eq!(failed.unwrap_err().code(), code, "{args:?}");
    }
    let (cgroup, ..) = agent
        .exec_sh(
            "x",
            "3",
            "cat /proc/self/cgroup; ps | grep -q [s]leep.1000 && echo seen",
        )
        .await;
    // Seen from its own cgroup namespace, the container's cgroup is the root.
    assert_eq!(cgroup, "0::/\nseen\n");
    let (_, stderr, exit) = agent.exec_sh("x", "4", "cd /; busybox rmdir /gone").await;
    assert_eq!(exit.code, 0, "{stderr}");
    let lost = agent.exec(exec_request("x", "5", &["true"])).await;
    assert_eq!(lost.unwrap_err().code(), Code::InvalidArgument);
    agent.delete("x").await;
}

#[tokio::test]
async fn stats_count_the_containers_work() {
    let mut agent = agent!(setup);
    agent
        .create("w", "head -c 3m /dev/zero > /tmp/file; sleep 1000")
        .await;
    agent.begin("w").await.unwrap();
    let (size, ..) = agent
        .exec_sh(
            "w",
            "wait",
            "while [ $(wc -c < /tmp/file) -lt 3145728 ]; do :; done; echo done",
        )
        .await;
    assert_eq!(size, "done\n");
    let stats = agent
        .client
        .stats(StatsRequest {
            detailed: true,
            ..StatsRequest::default()
        })
        .await
        .unwrap()
        .into_inner();
    let one = &stats.containers[0];
    assert!(one.processes >= 1 && one.pids >= one.processes, "{one:?}");
    assert!(one.memory_peak_bytes >= one.memory_rss_bytes, "{one:?}");
    let descriptors = one.descriptors.unwrap();
    assert!(
        descriptors.open >= 3 && descriptors.open_files_soft > 0,
        "{descriptors:?}"
    );
    let disk = one.filesystem.as_ref().unwrap();
    assert!(
        disk.total_bytes > disk.available_bytes && disk.inodes > disk.inodes_free,
        "{disk:?}"
    );
    assert!(
        one.cpu_usage_ns > 0 && one.memory_usage_bytes > 0 && one.pids >= 1,
        "{one:?}"
    );
    assert!((3 << 20..4 << 20).contains(&one.writable_bytes), "{one:?}");
    assert!(stats.guest.unwrap().memory_total_bytes > 0);
    agent.delete("w").await;
}

#[tokio::test]
async fn an_oom_kill_that_the_container_survives_is_an_event() {
    let mut agent = agent!(setup);
    // Without memory.oom.group only the largest process dies; the shell lives on.
    let mut limited = spec(&[
        "sh",
        "-c",
        "head -c 200m /dev/zero | tail -c 100m > /dev/null; echo alive; sleep 1000",
    ]);
    limited["linux"]["resources"]["memory"] = json!({"limit": 33_554_432, "swap": 33_554_432});
    agent
        .create_with(request_with("o", &limited))
        .await
        .unwrap();
    agent.begin("o").await.unwrap();
    let mut events = agent
        .client
        .events(EventsRequest { from_sequence: 1 })
        .await
        .unwrap()
        .into_inner();
    let event = tokio::time::timeout(common::DEADLINE, events.message())
        .await
        .expect("no event");
    let event = event.unwrap().unwrap();
    assert_eq!(event.container_id, "o");
    assert!(matches!(event.what, Some(event::What::Oom(_))), "{event:?}");
    let states = agent
        .client
        .list_containers(ListContainersRequest {})
        .await
        .unwrap();
    assert_eq!(states.into_inner().containers[0].phase(), Phase::Running);
    let kill = SignalProcessRequest {
        process: Some(process("o", "")),
        signal: 15,
        all: true,
    };
    agent.client.signal_process(kill).await.unwrap();
    agent.delete("o").await;
}
