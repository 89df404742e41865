//! What confines a container, through the agent's service: limits, seccomp, capabilities, devices,
//! users and user namespaces.

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
use common::{TestAgent, cgroup, request, request_with, spec};
use serde_json::json;
use tonic::Code;

/// Nothing of what the agent does on the way is subject to the profile, and the reason why the
/// kernel rejects the command is reported although the profile no longer allows any write.
#[tokio::test]
async fn a_seccomp_profile_need_allow_only_execve_and_what_the_program_needs() {
    let mut agent = agent!(setup);
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
    let mut agent = agent!(setup);
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
async fn limits_hold_and_oom_kills_are_reported() {
    let mut agent = agent!(setup);
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
    let file = |name: &str| std::fs::read_to_string(cgroup("m").join(name)).unwrap();
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
    agent.signal("k", "", 9).await;
    let (_, _, exit) = agent.collect("k").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, false));
    // A process that is gone is not an error.
    agent.signal("k", "", 9).await;
    agent.delete("k").await;
}

#[tokio::test]
async fn seccomp_capabilities_and_devices_hold_in_execs_too() {
    let mut agent = agent!(setup);
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
async fn all_containers_share_the_pods_user_namespace() {
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
