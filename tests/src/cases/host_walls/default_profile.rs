//! What the profile `bulkhead-default` forbids beside mounting, and what it leaves: files of `/proc` and
//! `/sys`, processes that are not under it, and sockets of families that lead past the network.

use std::{
    fs,
    process::{Child, Command},
};

use bulkhead_proto::cri::{
    LinuxContainerSecurityContext, NamespaceMode, NamespaceOption, SecurityProfile,
    security_profile::ProfileType,
};

use super::{
    super::contexts::{capabilities, profile, with},
    support::{HOST, bind, in_namespaces},
};
use crate::{
    Outcome,
    cases::{BUSYBOX, image},
    check,
    cri::{pod, script},
    suite::{Context, Skip, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("host_walls", the_default_profile_guards_proc_and_sys),
        test!(
            "host_walls",
            processes_outside_the_default_profile_are_left_alone
        ),
        test!(
            "host_walls",
            sockets_of_vsock_and_the_kernels_cryptography_are_refused
        ),
    ]
}

fn node_has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'))
}

fn skip_without_apparmor() -> Outcome {
    if node_has_apparmor() {
        return Ok(());
    }
    Err(Skip("the node's kernel has no AppArmor".to_owned()).into())
}

async fn the_default_profile_guards_proc_and_sys(context: &mut Context) -> Outcome {
    skip_without_apparmor()?;
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("profile-files");
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    // The node's /sys, writable: as agents of nodes have it, and the profile counts by path.
    let made = |name: &str, apparmor| {
        let mut made = with(
            script(name, BUSYBOX, "sleep 1000"),
            LinuxContainerSecurityContext {
                capabilities: capabilities(&["SYS_ADMIN", "SYS_RAWIO", "NET_ADMIN"], &[]),
                apparmor,
                ..LinuxContainerSecurityContext::default()
            },
        );
        made.mounts = ["/sys", "/sys/fs/cgroup", "/sys/kernel/security"]
            .map(|path| bind(path, path, false))
            .to_vec();
        made
    };
    let same = |file: &str| format!("cat {file} >{file}");
    let mut levers = vec![
        "head -c 1 /proc/kcore >/dev/null".to_owned(),
        same("/proc/sys/net/ipv4/ip_forward"),
        same("/proc/sys/fs/file-max"),
        same("/sys/kernel/mm/transparent_hugepage/use_zero_page"),
        "cat /sys/kernel/security/lsm".to_owned(),
    ];
    // What firmware there is, and whether there are power meters, differs between machines.
    for guarded in ["/sys/firmware", "/sys/devices/virtual/powercap"] {
        let entries = fs::read_dir(guarded).into_iter().flatten().flatten();
        let mut directories = entries.filter(|entry| entry.path().is_dir());
        if let Some(one) = directories.next() {
            levers.push(format!("ls {}", one.path().display()));
        }
    }
    let left = [
        same("/proc/sys/kernel/shm_rmid_forced"),
        same("/proc/sys/kernel/sem"),
        same("/proc/sys/fs/mqueue/msg_max"),
        "mkdir /sys/fs/cgroup/bh-profile && rmdir /sys/fs/cgroup/bh-profile".to_owned(),
    ];
    let confined = cri.run(&id, &config, made("confined", None)).await?;
    let free = made("free", profile(ProfileType::Unconfined));
    let free = cri.run(&id, &config, free).await?;
    for lever in &levers {
        let done = cri.exec(&confined, &["/bin/sh", "-c", lever]).await?;
        let told = String::from_utf8_lossy(&done.stderr);
        check!(
            done.exit_code != 0 && told.contains("Permission denied"),
            "{lever}: {done:?}"
        );
        // The profile it is that forbids it.
        cri.shell(&free, lever).await?;
    }
    for lever in &left {
        cri.shell(&confined, lever).await?;
    }
    Ok(cri.remove_pod(&id).await?)
}

/// A process of the node's, gone with the test.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn processes_outside_the_default_profile_are_left_alone(context: &mut Context) -> Outcome {
    skip_without_apparmor()?;
    let cri = &context.cri;
    let walls = image("walls");
    cri.pull(&walls).await?;
    let node = NamespaceOption {
        pid: NamespaceMode::Node.into(),
        ..NamespaceOption::default()
    };
    let config = in_namespaces("profile-processes", node.clone());
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let made = |name: &str, apparmor: Option<SecurityProfile>| {
        with(
            script(name, &walls, "sleep 1000"),
            LinuxContainerSecurityContext {
                capabilities: capabilities(&["SYS_PTRACE"], &[]),
                namespace_options: Some(node.clone()),
                apparmor,
                ..LinuxContainerSecurityContext::default()
            },
        )
    };
    let confined = cri.run(&id, &config, made("confined", None)).await?;
    let free = made("free", profile(ProfileType::Unconfined));
    let free = cri.run(&id, &config, free).await?;
    let mut victim = Sleeper(Command::new("sleep").arg("1000").spawn()?);
    let number = victim.0.id();
    let look = format!("readlink /proc/{number}/cwd");
    // ptrace(PTRACE_SEIZE, …): the tracer ends at once, and its hold with it.
    let trace = format!("test $(/tools/system-call 101 0x4206 {number} 0 0) = 0");
    let end = format!("kill -TERM {number}");
    for attempt in [&look, &trace, &end] {
        let done = cri.exec(&confined, &["/bin/sh", "-c", attempt]).await?;
        check!(done.exit_code != 0, "{attempt} was allowed: {done:?}");
    }
    check!(victim.0.try_wait()?.is_none(), "it has ended");
    // Of its own kind it may do all of that.
    cri.shell(
        &confined,
        "sleep 1000 & readlink /proc/$!/cwd && test $(/tools/system-call 101 0x4206 $! 0 0) = 0 && \
         kill -TERM $!",
    )
    .await?;
    for attempt in [&look, &trace, &end] {
        cri.shell(&free, attempt).await?;
    }
    victim.0.wait()?;
    Ok(cri.remove_pod(&id).await?)
}

/// The results of the tool's lines for a way, one per type of socket.
fn results<'a>(text: &'a str, way: &str) -> Vec<&'a str> {
    let words = text.lines().map(|line| line.split(' '));
    let of_way = words.filter(|words| words.clone().next() == Some(way));
    of_way.filter_map(|mut words| words.nth(2)).collect()
}

async fn sockets_of_vsock_and_the_kernels_cryptography_are_refused(
    context: &mut Context,
) -> Outcome {
    let cri = &context.cri;
    let tools = image("volume-tools");
    cri.pull(&tools).await?;
    let by_default = profile(ProfileType::RuntimeDefault);
    let unconfined = profile(ProfileType::Unconfined);
    for (handler, name, seccomp, apparmor) in [
        ("kvm", "filtered", &by_default, &None),
        (HOST, "filtered", &by_default, &None),
        (HOST, "unfiltered", &None, &None),
        (HOST, "without-profile", &by_default, &unconfined),
    ] {
        let what = format!("{name} on {handler}");
        let config = pod(&format!("families-{handler}-{name}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let made = with(
            script(name, &tools, "sleep 1000"),
            LinuxContainerSecurityContext {
                seccomp: seccomp.clone(),
                apparmor: apparmor.clone(),
                ..LinuxContainerSecurityContext::default()
            },
        );
        let made = cri.run(&id, &config, made).await?;
        let tried = cri.shell(&made, "/tools/vsock-walls make").await?;
        for way in ["socket", "socketcall", "socket32"] {
            let inet = results(&tried, &format!("inet-{way}"));
            check!(inet.first() == Some(&"made"), "{what}, {way}: {tried}");
        }
        let profiled = handler == HOST && apparmor.is_none() && node_has_apparmor();
        for family in ["vsock", "alg"] {
            let all = |way: &str, error: &str| {
                let found = results(&tried, &format!("{family}-{way}"));
                found.len() == 3 && found.iter().all(|result| *result == error)
            };
            for way in ["socket", "socket32"] {
                let refused = match seccomp {
                    Some(_) => all(way, "EPERM"),
                    None => !profiled || all(way, "EACCES"),
                };
                check!(refused, "{what}, {family} by {way}: {tried}");
            }
            check!(all("io_uring", "EPERM"), "{what}, {family}: {tried}");
            // Its arguments are where no filter looks.
            let by_call = results(&tried, &format!("{family}-socketcall"));
            let fits = match (handler, family) {
                ("kvm", "vsock") => all("socketcall", "EPERM") && all("socketpair", "EPERM"),
                // The guest's kernel has it for cryptsetup; that kernel is the pod's own.
                ("kvm", _) => by_call.contains(&"made"),
                (HOST, _) if profiled => all("socketcall", "EACCES") && all("socketpair", "EACCES"),
                (HOST, "vsock") => by_call.first() == Some(&"made"),
                _ => by_call.iter().all(|result| *result != "EACCES"),
            };
            check!(fits, "{what}, {family} by socketcall: {tried}");
        }
        cri.remove_pod(&id).await?;
    }
    Ok(())
}
