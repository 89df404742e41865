//! Containers through the agent's service: life cycle, limits, users, errors.

// Tests fail by panicking, and say what they measured or why they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing
)]

#[allow(dead_code)] // each test program uses a part
mod common;

use bulkhead_proto::agent::*;
use common::{TestAgent, collect, exec_request, process, request, request_with, spec, text};
use serde_json::json;
use tonic::Code;

macro_rules! agent {
    () => {
        match TestAgent::start().await {
            Some(mut agent) => {
                agent.setup().await;
                agent
            }
            None => return,
        }
    };
}

#[tokio::test]
async fn a_container_lives_and_leaves_nothing() {
    let mut agent = agent!();
    agent
        .create("c1", "echo out; echo err >&2; echo $$; exit 7")
        .await;
    let states = agent
        .client
        .list_containers(ListContainersRequest {})
        .await
        .unwrap();
    assert_eq!(states.into_inner().containers[0].phase(), Phase::Created);
    let cgroup = std::path::Path::new("/sys/fs/cgroup/bulkhead/c1");
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
async fn a_directory_without_an_entry_is_as_the_layers_below_have_it() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let mut agent = agent!();
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
    let mut agent = agent!();
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
    assert!(!std::path::Path::new("/sys/fs/cgroup/bulkhead/e").exists());
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
async fn commands_and_users_that_are_not_there_fail_at_the_start() {
    let mut agent = agent!();
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
async fn a_program_the_kernel_does_not_take_fails_at_the_start() {
    let mut agent = agent!();
    let layer = agent.state().join("layers/busybox/bin/script");
    std::fs::write(&layer, "#!/bin/no-such-interpreter\n").unwrap();
    std::fs::set_permissions(&layer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    agent.create_with(request("s", &["script"])).await.unwrap();
    assert_eq!(agent.begin("s").await.unwrap_err().code(), Code::NotFound);
    let (_, _, exit) = agent.collect("s").await;
    assert_ne!(exit.code, 0);
    agent.delete("s").await;
}

/// Nothing of what the agent does on the way is subject to the profile, and why the kernel does not
/// take the command is told although the profile lets nothing be said any more.
#[tokio::test]
async fn a_seccomp_profile_may_allow_execve_and_what_the_program_needs_alone() {
    let mut agent = agent!();
    let text = agent.state().join("layers/busybox/bin/text");
    std::fs::write(&text, "no program\n").unwrap();
    std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for no_new_privileges in [false, true] {
        for uid in [0, 1000] {
            let confined = |args: &[&str], names: &[&str]| {
                let mut changed = spec(args);
                changed["process"]["noNewPrivileges"] = json!(no_new_privileges);
                changed["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                    "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
                });
                let mut request = request_with("f", &changed);
                request.user = Some(User {
                    uid: Some(uid),
                    ..User::default()
                });
                request
            };
            // Of a static program's start. None of it is what the agent does on the way: open, read,
            // write, setresuid, capset, prctl, rt_sigaction, close_range, seccomp.
            let needed = [
                "execve",
                "arch_prctl",
                "brk",
                "mmap",
                "munmap",
                "mprotect",
                "set_tid_address",
                "set_robust_list",
                "rseq",
                "prlimit64",
                "readlink",
                "readlinkat",
                "getrandom",
                "uname",
                "newfstatat",
                "getuid",
                "exit_group",
            ];
            agent
                .create_with(confined(&["true"], &needed))
                .await
                .unwrap();
            agent.begin("f").await.unwrap();
            let (_, stderr, exit) = agent.collect("f").await;
            assert_eq!(exit.code, 0, "{stderr}");
            agent.delete("f").await;

            agent
                .create_with(confined(&["text"], &["execve"]))
                .await
                .unwrap();
            let refused = agent.begin("f").await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(
                refused
                    .message()
                    .ends_with("exec /bin/text: exec format error"),
                "{}",
                refused.message()
            );
            agent.delete("f").await;
        }
    }
}

#[tokio::test]
async fn the_image_and_the_pod_say_who_the_process_is() {
    let mut agent = agent!();
    let mut wanted = request("u", &["sh", "-c", "id; echo $HOME; pwd; sleep 1000"]);
    wanted.user = Some(User {
        name: "web".into(),
        supplemental_gids: vec![77],
        ..User::default()
    });
    let mut changed = spec(&["sh", "-c", "id; echo $HOME; pwd"]);
    changed["process"]["cwd"] = json!("/made/for/this");
    wanted.oci_spec = serde_json::to_vec(&changed).unwrap().into();
    let answer = agent.create_with(wanted).await.unwrap();
    let user = answer.user.unwrap();
    assert_eq!(
        (user.uid, user.gid, user.gids),
        (1000, 1000, vec![1000, 4, 77])
    );
    agent.begin("u").await.unwrap();
    let (stdout, stderr, _) = agent.collect("u").await;
    assert_eq!(
        stdout,
        "uid=1000(web) gid=1000(web) groups=4(adm),77,1000(web)\n/home/web\n/made/for/this\n",
        "{stderr}"
    );
    agent.delete("u").await;
}

#[tokio::test]
async fn limits_hold_and_a_memory_kill_is_told_apart() {
    let mut agent = agent!();
    let mut limited = spec(&["sh", "-c", "head -c 200m /dev/zero | tail -c 100m | wc -c"]);
    limited["linux"]["resources"]["memory"] = json!({"limit": 33_554_432, "swap": 33_554_432});
    limited["linux"]["resources"]["pids"] = json!({"limit": 50});
    limited["linux"]["resources"]["cpu"] =
        json!({"shares": 512, "quota": 50000, "period": 100_000});
    limited["linux"]["resources"]["unified"] = json!({"memory.oom.group": "1"});
    agent
        .create_with(request_with("m", &limited))
        .await
        .unwrap();
    let file =
        |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/bulkhead/m/{name}")).unwrap();
    assert_eq!(file("memory.max"), "33554432\n");
    assert_eq!(file("memory.swap.max"), "0\n");
    assert_eq!(file("pids.max"), "50\n");
    assert_eq!(file("cpu.max"), "50000 100000\n");
    let update = json!({"pids": {"limit": 60}, "cpu": {"quota": -1}});
    let update = UpdateContainerRequest {
        container_id: "m".into(),
        resources: serde_json::to_vec(&update).unwrap().into(),
    };
    agent.client.update_container(update).await.unwrap();
    assert_eq!(
        (file("pids.max"), file("cpu.max")),
        ("60\n".into(), "max 100000\n".into())
    );
    agent.begin("m").await.unwrap();
    let (_, _, exit) = agent.collect("m").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, true));
    agent.delete("m").await;

    agent.create("k", "sleep 1000").await;
    agent.begin("k").await.unwrap();
    let kill = SignalProcessRequest {
        process: Some(process("k", "")),
        signal: 9,
        all: false,
    };
    agent.client.signal_process(kill.clone()).await.unwrap();
    let (_, _, exit) = agent.collect("k").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, false));
    // A process that is gone is no error.
    agent.client.signal_process(kill).await.unwrap();
    agent.delete("k").await;
}

#[tokio::test]
async fn the_first_process_takes_the_rest_with_it() {
    let mut agent = agent!();
    // In the guest's PID namespace nothing else would end the second one.
    let mut wanted = request("r", &["sh", "-c", "sleep 1000 & exit 0"]);
    wanted.pid_mode = PidMode::Node.into();
    agent.create_with(wanted).await.unwrap();
    agent.begin("r").await.unwrap();
    let (_, _, exit) = agent.collect("r").await;
    assert_eq!(exit.code, 0);
    let deadline = tokio::time::Instant::now() + common::DEADLINE;
    bulkhead_agent::container::cgroup::wait_empty(
        std::path::Path::new("/sys/fs/cgroup/bulkhead/r"),
        deadline,
    )
    .await
    .unwrap();
    agent.delete("r").await;
}

#[tokio::test]
async fn containers_can_share_a_pid_namespace() {
    let mut agent = agent!();
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
async fn seccomp_capabilities_and_devices_hold_in_execs_too() {
    let mut agent = agent!();
    let script = "mkdir /x; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; \
                  mknod /tmp/disk b 8 0; cat /tmp/disk; head -c 1 /dev/null; sleep 1000";
    let mut filtered = spec(&["sh", "-c", script]);
    filtered["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]
    });
    for (id, no_new_privileges) in [("f1", true), ("f2", false)] {
        filtered["process"]["noNewPrivileges"] = json!(no_new_privileges);
        filtered["process"]["args"] = json!(["sleep", "1000"]);
        agent
            .create_with(request_with(id, &filtered))
            .await
            .unwrap();
        agent.begin(id).await.unwrap();
        let script = script
            .replace("; sleep 1000", "")
            .replace("mkdir", "busybox mkdir");
        let (stdout, stderr, _) = agent.exec_sh(id, "x", &script).await;
        assert!(stdout.contains("Seccomp:\t2"), "{stdout}");
        assert!(stdout.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privileges))));
        // chown, kill, setgid, setuid, mknod.
        assert!(stdout.contains("CapEff:\t00000000080000e1"), "{stdout}");
        assert!(
            stderr.contains("Not supported") || stderr.contains("not supported"),
            "{stderr}"
        );
        assert!(
            stderr.contains("/tmp/disk': Operation not permitted"),
            "{stderr}"
        );
        agent.delete(id).await;
    }
}

#[tokio::test]
async fn execs_join_the_container_and_fail_with_codes() {
    let mut agent = agent!();
    agent.create("x", "sleep 1000").await;
    let early = agent.exec(exec_request("x", "1", &["true"])).await;
    assert_eq!(early.unwrap_err().code(), Code::FailedPrecondition);
    agent.begin("x").await.unwrap();
    let mut wanted = exec_request("x", "1", &["sh", "-c", "echo $A $PATH; pwd; exit 3"]);
    wanted.env = vec!["A=b".into()];
    wanted.cwd = "/tmp".into();
    let session = agent.exec(wanted).await.unwrap();
    let (stdout, _, exit) = text(collect(session, false).await);
    assert_eq!((stdout.as_str(), exit.code), ("b /bin\n/tmp\n", 3));
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
    let mut lost = exec_request("x", "2", &["true"]);
    lost.cwd = "/nowhere".into();
    assert_eq!(
        agent.exec(lost).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let (cgroup, ..) = agent
        .exec_sh(
            "x",
            "3",
            "cat /proc/self/cgroup; ps | grep -q [s]leep.1000 && echo seen",
        )
        .await;
    // Seen from its own cgroup namespace, the container's cgroup is the root.
    assert_eq!(cgroup, "0::/\nseen\n");
    agent.delete("x").await;
}

#[tokio::test]
async fn stats_count_the_containers_work() {
    let mut agent = agent!();
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
async fn a_memory_kill_that_is_survived_is_an_event() {
    let mut agent = agent!();
    // Without memory.oom.group only the largest process dies; the shell goes on.
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

#[tokio::test]
async fn a_user_namespace_is_the_pods_and_owns_what_its_root_has() {
    let Some(mut agent) = TestAgent::start().await else {
        return;
    };
    let range = |first| {
        Some(IdRange {
            first,
            length: 65_536,
        })
    };
    agent
        .setup_with(Some(UserNamespace {
            uids: range(200_000),
            gids: range(300_000),
        }))
        .await;
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; echo x >/tmp/made; ls -n /bin/plain /tmp/made; \
                  echo out >/dev/stdout; ls /sys/class/net >/dev/null";
    let (stdout, stderr, exit) = agent.run("c1", script).await;
    assert_eq!((stderr.as_str(), exit.code), ("", 0), "{stdout}");
    let words: Vec<_> = stdout.split_whitespace().collect();
    assert_eq!(
        words[..7],
        ["0", "200000", "65536", "0", "300000", "65536", "0"]
    );
    assert_eq!(stdout.matches(" 0        0 ").count(), 2, "{stdout}");
    assert!(stdout.ends_with("out\n"));

    // The user a container has counts inside; one that is not there is refused.
    let user = |uid| User {
        uid: Some(uid),
        ..User::default()
    };
    let mut other = request("c2", &["sleep", "100"]);
    other.user = Some(user(1000));
    agent.create_with(other).await.unwrap();
    agent.begin("c2").await.unwrap();
    let (stdout, _, exit) = agent
        .exec_sh("c2", "e1", "id -u; id -G; cat /proc/self/uid_map")
        .await;
    assert_eq!(exit.code, 0);
    assert!(
        stdout.starts_with("1000\n1000 4\n") && stdout.contains("200000"),
        "{stdout}"
    );
    let mut beyond = request("c3", &["true"]);
    beyond.user = Some(user(65_536));
    agent.create_with(beyond).await.unwrap();
    let refused = agent.begin("c3").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("65536"), "{}", refused.message());
    agent.delete("c3").await;
    agent.delete("c2").await;
}
