//! Users, capabilities, seccomp and what else confines a container within its guest.

use bulkhead_proto::cri::{
    Int64Value, LinuxContainerSecurityContext, NamespaceMode, security_profile::ProfileType,
};

use super::{
    BUSYBOX,
    contexts::{capabilities, pids, profile, with},
    image,
};
use crate::{
    Outcome, check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("security", users_and_groups_are_the_images),
        test!("security", capabilities_seccomp_and_paths_confine),
        test!("security", pid_namespaces_are_shared_as_asked),
        test!(
            "security",
            the_first_process_of_a_shared_namespace_shows_nothing
        ),
        test!("security", a_shared_namespace_can_be_ended_and_comes_back),
        test!("security", shared_files_cannot_be_filled_without_end),
    ]
}

fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

async fn users_and_groups_are_the_images(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let config = pod("users");
    let mut id = None;
    for (name, expected) in [
        ("user-name", "33 33 33"),
        ("user-id", "1002 0 0"),
        ("user-id-group", "1003 1004 1004"),
        ("user-predefined-group", "1000 1000 1000 100 50000"),
    ] {
        cri.pull(&image(name)).await?;
        let id = match &id {
            Some(id) => id,
            None => id.insert(cri.run_pod(config.clone()).await?),
        };
        let made = cri
            .run(id, &config, script(name, &image(name), "sleep 1000"))
            .await?;
        let got = cri.shell(&made, "echo $(id -u) $(id -g) $(id -G)").await?;
        let mut groups: Vec<&str> = got.split_whitespace().skip(2).collect();
        groups.sort_by_key(|text| text.parse::<u64>().unwrap_or(0));
        let got = format!(
            "{} {}",
            got.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
            groups.join(" ")
        );
        let mut wanted: Vec<&str> = expected.split(' ').collect();
        wanted[2..].sort_by_key(|text| text.parse::<u64>().unwrap_or(0));
        check!(
            got == wanted.join(" "),
            "{name}: {got}, expected {expected}"
        );
    }
    let id = id.ok_or("no pod")?;
    let context = LinuxContainerSecurityContext {
        run_as_user: number(1000),
        supplemental_groups: vec![1234],
        ..LinuxContainerSecurityContext::default()
    };
    cri.pull(BUSYBOX).await?;
    let made = cri
        .run(
            &id,
            &config,
            with(script("asked", BUSYBOX, "sleep 1000"), context),
        )
        .await?;
    let groups = cri.shell(&made, "id -G").await?;
    check!(groups.split_whitespace().any(|g| g == "1234"), "{groups}");
    let user = cri
        .status(&made)
        .await?
        .user
        .and_then(|u| u.linux)
        .unwrap_or_default();
    check!(
        user.uid == 1000 && user.supplemental_groups.contains(&1234),
        "{user:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn capabilities_seccomp_and_paths_confine(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("confined");
    let id = cri.run_pod(config.clone()).await?;
    let sleep = || script("x", BUSYBOX, "sleep 1000");
    let named = |name: &str, security| {
        let mut config = with(sleep(), security);
        if let Some(metadata) = &mut config.metadata {
            name.clone_into(&mut metadata.name);
        }
        config
    };
    let usual = LinuxContainerSecurityContext {
        seccomp: profile(ProfileType::RuntimeDefault),
        no_new_privs: true,
        readonly_rootfs: true,
        masked_paths: vec!["/proc/kcore".to_owned(), "/sys/firmware".to_owned()],
        readonly_paths: vec!["/proc/sys".to_owned()],
        ..LinuxContainerSecurityContext::default()
    };
    let made = cri.run(&id, &config, named("usual", usual)).await?;
    let status = cri
        .shell(
            &made,
            "grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status",
        )
        .await?;
    check!(
        status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
        "{status}"
    );
    check!(!status.contains("CapEff:\t000001ffffffffff"), "{status}");
    for forbidden in [
        "touch /file",
        "echo 1 >/proc/sys/kernel/shm_rmid_forced",
        "head -c 1 /proc/kcore | grep -q .",
        "mount -t tmpfs none /tmp",
        "unshare -U true",
        "brctl addbr br0",
    ] {
        let done = cri.exec(&made, &["/bin/sh", "-c", forbidden]).await?;
        check!(done.exit_code != 0, "{forbidden} was allowed");
    }
    let none = LinuxContainerSecurityContext {
        capabilities: capabilities(&[], &["ALL"]),
        ..LinuxContainerSecurityContext::default()
    };
    let made = cri.run(&id, &config, named("none", none)).await?;
    let status = cri.shell(&made, "grep CapEff /proc/self/status").await?;
    check!(status.contains("0000000000000000"), "{status}");
    let network = LinuxContainerSecurityContext {
        capabilities: capabilities(&["NET_ADMIN"], &[]),
        seccomp: profile(ProfileType::Unconfined),
        ..LinuxContainerSecurityContext::default()
    };
    let made = cri.run(&id, &config, named("network", network)).await?;
    cri.shell(&made, "brctl addbr br0 && brctl delbr br0")
        .await?;
    let privileged = LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    };
    let mut config_of = config.clone();
    if let Some(security) = config_of.linux.as_mut() {
        security.security_context.get_or_insert_default().privileged = true;
    }
    let made = cri
        .run(&id, &config_of, named("privileged", privileged))
        .await?;
    cri.shell(
        &made,
        "mount -t tmpfs none /mnt 2>/dev/null || { mkdir /mnt; mount -t tmpfs none /mnt; }",
    )
    .await?;
    // The guest's devices, its sysctls, and no way to load a module.
    cri.shell(
        &made,
        "set -e; for device in fuse net/tun loop-control; do (exec 3<>/dev/$device); done; \
         cat /proc/sys/kernel/printk >/proc/sys/kernel/printk; \
         cat /sys/kernel/mm/transparent_hugepage/use_zero_page \
         >/sys/kernel/mm/transparent_hugepage/use_zero_page; test ! -e /proc/modules",
    )
    .await?;
    Ok(cri.remove_pod(&id).await?)
}

async fn pid_namespaces_are_shared_as_asked(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("pids");
    let id = cri.run_pod(config.clone()).await?;
    let mode = |pid: NamespaceMode, target: &str| LinuxContainerSecurityContext {
        namespace_options: pids(pid, target),
        ..LinuxContainerSecurityContext::default()
    };
    let alone = with(
        script("alone", BUSYBOX, "sleep 1001"),
        mode(NamespaceMode::Container, ""),
    );
    let alone = cri.run(&id, &config, alone).await?;
    check!(
        !cri.shell(&alone, "ps").await?.contains("agent"),
        "the agent is seen"
    );
    let first = cri
        .shell(&alone, "cat /proc/1/cmdline | tr '\\0' ' '")
        .await?;
    check!(first.contains("sleep 1001"), "not PID 1: {first}");
    let shared = |name: &str, time: &str| {
        with(
            script(name, BUSYBOX, &format!("sleep {time}")),
            mode(NamespaceMode::Pod, ""),
        )
    };
    let a = cri.run(&id, &config, shared("a", "1002")).await?;
    let b = cri.run(&id, &config, shared("b", "1003")).await?;
    let seen = cri.shell(&b, "ps").await?;
    check!(
        seen.contains("sleep 1002") && seen.contains("sleep 1003"),
        "{seen}"
    );
    check!(!seen.contains("sleep 1001"), "{seen}");
    let debug = with(
        script("debug", BUSYBOX, "sleep 1004"),
        mode(NamespaceMode::Target, &alone),
    );
    let debug = cri.run(&id, &config, debug).await?;
    let seen = cri.shell(&debug, "ps").await?;
    check!(seen.contains("sleep 1001"), "{seen}");
    cri.stop(&a, 0).await?;
    let status = cri.status(&b).await?;
    check!(
        status.finished_at == 0,
        "the other container died too: {status:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}

/// Who shares a PID namespace sees its first process, and with SYS_PTRACE may look into it.
async fn the_first_process_of_a_shared_namespace_shows_nothing(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    for handler in ["kvm", "host"] {
        let config = pod(&format!("holder-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let curious = with(
            script("curious", BUSYBOX, "sleep 1000"),
            LinuxContainerSecurityContext {
                capabilities: capabilities(&["SYS_PTRACE"], &[]),
                namespace_options: pids(NamespaceMode::Pod, ""),
                apparmor: profile(ProfileType::Unconfined),
                ..LinuxContainerSecurityContext::default()
            },
        );
        let curious = cri.run(&id, &config, curious).await?;
        let seen = cri
            .shell(
                &curious,
                "cat /proc/1/comm; ls -A /proc/1/root/ | wc -l; ls /proc/1/root/etc 2>/dev/null; \
                 ls -A /proc/1/cwd/ | wc -l; ls -A /proc/1/fd | wc -l; \
                 grep -E '^(CapPrm|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status | tr -d '\\t'",
            )
            .await?;
        let none = "0000000000000000";
        let expected = format!(
            "bulkhead-pod\n0\n0\n0\nCapPrm:{none}\nCapEff:{none}\nCapBnd:{none}\nNoNewPrivs:1\nSeccomp:2\n"
        );
        check!(seen == expected, "{handler}: {seen}");
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn a_shared_namespace_can_be_ended_and_comes_back(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("volume-tools");
    cri.pull(&tools).await?;
    for handler in ["kvm", "host"] {
        let config = pod(&format!("ended-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let sharing = |name: &str, text: &str, add: &[&str]| {
            with(
                script(name, &tools, text),
                LinuxContainerSecurityContext {
                    capabilities: capabilities(add, &[]),
                    namespace_options: pids(NamespaceMode::Pod, ""),
                    seccomp: profile(ProfileType::Unconfined),
                    ..LinuxContainerSecurityContext::default()
                },
            )
        };
        let peer = cri
            .run(&id, &config, sharing("peer", "sleep 1000", &[]))
            .await?;
        // reboot(2), LINUX_REBOOT_CMD_RESTART: in a PID namespace it ends the first process there.
        let reboot = [
            "/tools/system-call",
            "169",
            "0xfee1dead",
            "672274793",
            "0x01234567",
        ];
        let mut ending = sharing("ending", "sleep 1000", &["SYS_BOOT"]);
        for number in 0..2 {
            ending.metadata.get_or_insert_default().attempt = number;
            let made = cri.run(&id, &config, ending.clone()).await?;
            let done = cri.exec(&made, &reboot).await?;
            check!(done.stdout.is_empty(), "{handler}: refused: {done:?}");
            for gone in [&made, &peer] {
                let status = cri.exited(gone).await?;
                check!(status.exit_code == 137, "{handler}: {status:?}");
            }
            // Whoever comes next has a namespace of the pod's again, and not one of the guest's or the
            // node's.
            let name = format!("after{number}");
            let after = sharing(&name, "exec sleep 1000", &[]);
            let after = cri.run(&id, &config, after).await?;
            let seen = cri
                .shell(&after, "cat /proc/1/comm; ps | grep -c '[s]leep 1000'")
                .await?;
            check!(seen == "bulkhead-pod\n1\n", "{handler}: {seen:?}");
        }
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn shared_files_cannot_be_filled_without_end(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    for handler in ["kvm", "host"] {
        let config = pod(&format!("filled-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let made = script("filling", BUSYBOX, "sleep 1000");
        let made = cri.run(&id, &config, made).await?;
        let fill = "dd if=/dev/zero of=/etc/resolv.conf bs=1M count=64";
        let done = cri.exec(&made, &["/bin/sh", "-c", fill]).await?;
        let told = String::from_utf8_lossy(&done.stderr);
        check!(
            done.exit_code != 0 && told.contains("No space left on device"),
            "{handler}: {done:?}"
        );
        cri.remove_pod(&id).await?;
    }
    Ok(())
}
