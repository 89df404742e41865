//! Pods on the host: the handler `host`, and the policy that sends pods there. The same agent runs
//! them, so what is looked at here is what differs: the namespaces, the mounts, the cgroups, and
//! the end.

use std::{fs, net::TcpListener, process::Command};

use bulkhead_proto::cri::{
    ContainerState, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxState,
};
use tokio::time::Instant;
use tonic::Code;

use super::{BUSYBOX, logs};
use crate::{
    Failure, Outcome, check,
    cri::{PATIENCE, pause, pod, script},
    host::{Host, Options},
    suite::{Context, Test},
    test,
    waiting::Progress,
};

/// The handler.
const HOST: &str = "host";

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("host", a_pod_lives_and_dies_on_the_host),
        test!("host", pods_in_the_hosts_namespaces_go_there_by_policy),
        test!("host", a_pod_outlives_the_daemon_and_not_its_agent),
        test!("host", the_policy_can_refuse),
    ]
}

fn link(pid: impl std::fmt::Display, kind: &str) -> Result<String, Failure> {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}"))?;
    Ok(link.display().to_string())
}

async fn a_pod_lives_and_dies_on_the_host(context: &mut Context) -> Outcome {
    let (mut config, dir) = logs::logging_pod(context, "onhost");
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    if let Some(linux) = &mut config.linux {
        linux
            .sysctls
            .insert("net.core.somaxconn".to_owned(), "77".to_owned());
    }
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let (status, info) = cri.pod_status(&id).await?;
    check!(
        status.state() == PodSandboxState::SandboxReady,
        "{status:?}"
    );
    check!(status.runtime_handler == HOST, "{status:?}");
    check!(
        info.values()
            .any(|text| text.contains(r#""handler":"host""#)),
        "the status does not tell the handler: {info:?}"
    );
    let ip = status.network.unwrap_or_default().ip;
    check!(!ip.is_empty(), "no address");

    let text = "echo out; echo err >&2; sleep 1000";
    let main = logs::logged(script("main", BUSYBOX, text), "main.log");
    let main = cri.run(&id, &config, main).await?;
    let host_kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = cri.shell(&main, "uname -r").await?;
    check!(kernel == host_kernel, "not the host's kernel: {kernel}");
    let seen = cri
        .shell(
            &main,
            "hostname; cat /proc/sys/net/core/somaxconn /proc/1/comm; ip -o -4 addr; cat /etc/hosts",
        )
        .await?;
    let mut lines = seen.lines();
    check!(lines.next() == Some("onhost"), "{seen}");
    check!(lines.next() == Some("77"), "{seen}");
    check!(seen.matches(&ip).count() >= 2, "{ip} in {seen}");
    for kind in ["net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        let inside = cri
            .shell(&main, &format!("readlink /proc/self/ns/{kind}"))
            .await?;
        check!(
            inside.trim() != link("self", kind)?,
            "the host's {kind} namespace"
        );
    }
    // The host's cgroups and mounts are out of sight; the root is the image's, and writable.
    let cgroup = cri.shell(&main, "cat /proc/self/cgroup").await?;
    check!(cgroup.trim() == "0::/", "{cgroup}");
    cri.shell(&main, "echo x > /written && test $(cat /written) = x")
        .await?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    check!(
        !mounts.contains(&format!("/pods/{id}")),
        "mounts of the pod on the host: {mounts}"
    );
    // Nobody but the host's root reaches the agent.
    let pods = context.host.run_dir().join("pods");
    let socket = fs::metadata(pods.join(&id).join("host/agent.sock"))?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&socket.permissions());
    check!(mode & 0o077 == 0, "{mode:o}");

    let second = cri
        .run(&id, &config, script("second", BUSYBOX, "exit 7"))
        .await?;
    check!(cri.exited(&second).await?.exit_code == 7, "the exit code");
    let mut hungry = script(
        "hungry",
        BUSYBOX,
        "dd if=/dev/zero of=/dev/null bs=64M count=1",
    );
    let linux = hungry.linux.get_or_insert_default();
    linux
        .resources
        .get_or_insert_default()
        .memory_limit_in_bytes = 16 << 20;
    let hungry = cri.run(&id, &config, hungry).await?;
    let status = cri.exited(&hungry).await?;
    check!(
        status.reason == "OOMKilled" && status.exit_code == 137,
        "{status:?}"
    );
    let status = cri.status(&main).await?;
    check!(
        status.state() == ContainerState::ContainerRunning,
        "{status:?}"
    );

    cri.stop(&main, 0).await?;
    check!(
        cri.exited(&main).await?.exit_code == 137,
        "the exit code of a kill"
    );
    check!(
        logs::read(&dir.join("main.log"), "stdout")? == b"out\n",
        "stdout"
    );
    check!(
        logs::read(&dir.join("main.log"), "stderr")? == b"err\n",
        "stderr"
    );
    cri.remove(&main).await?;
    Ok(cri.remove_pod(&id).await?)
}

fn in_host_namespaces(name: &str) -> PodSandboxConfig {
    let mut config = pod(name);
    // As a kubelet leaves it for such pods.
    config.hostname = String::new();
    let security = config.linux.get_or_insert_default();
    let node = i32::from(NamespaceMode::Node);
    security
        .security_context
        .get_or_insert_default()
        .namespace_options = Some(NamespaceOption {
        network: node,
        pid: node,
        ipc: node,
        ..NamespaceOption::default()
    });
    config
}

async fn pods_in_the_hosts_namespaces_go_there_by_policy(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = in_host_namespaces("node");
    let refused = cri.run_pod_on("kvm", config.clone()).await;
    check!(
        refused
            .as_ref()
            .is_err_and(|e| e.code() == Code::FailedPrecondition),
        "{refused:?}"
    );
    let mut sysctl = config.clone();
    if let Some(linux) = &mut sysctl.linux {
        linux
            .sysctls
            .insert("net.core.somaxconn".to_owned(), "78".to_owned());
    }
    let refused = cri.run_pod(sysctl).await;
    check!(
        refused
            .as_ref()
            .is_err_and(|e| e.code() == Code::InvalidArgument),
        "a sysctl of the host: {refused:?}"
    );

    let id = cri.run_pod(config.clone()).await?;
    let (status, _) = cri.pod_status(&id).await?;
    check!(status.runtime_handler == HOST, "not told: {status:?}");
    check!(
        status.network.unwrap_or_default().ip.is_empty(),
        "an address of the node's"
    );
    let log = fs::read_to_string(context.host.log())?;
    check!(log.contains("runs on the host"), "the log does not tell");

    let mut main = script("main", BUSYBOX, "sleep 1000");
    let security = main
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    security.namespace_options = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone());
    let main = cri.run(&id, &config, main).await?;
    for kind in ["net", "ipc", "uts", "pid"] {
        let inside = cri
            .shell(&main, &format!("readlink /proc/self/ns/{kind}"))
            .await?;
        check!(
            inside.trim() == link("self", kind)?,
            "not the host's {kind} namespace: {inside}"
        );
    }
    // A socket of the host's loopback, one of its processes, one of its segments.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    cri.shell(&main, &format!("nc -z 127.0.0.1 {port}")).await?;
    let own = std::process::id();
    let comm = cri.shell(&main, &format!("cat /proc/{own}/comm")).await?;
    check!(comm == fs::read_to_string("/proc/self/comm")?, "{comm}");
    let made = Command::new("ipcmk").args(["--shmem", "4096"]).output()?;
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    let segment = text
        .rsplit(' ')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    let seen = cri.shell(&main, "cat /proc/sysvipc/shm").await;
    Command::new("ipcrm")
        .args(["--shmem-id", &segment])
        .status()?;
    let seen = seen?;
    let has = |line: &str| line.split_whitespace().nth(1) == Some(segment.as_str());
    check!(
        !segment.is_empty() && seen.lines().any(has),
        "segment {segment:?} in {seen}"
    );
    let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
    check!(
        cri.shell(&main, "cat /etc/hostname").await? == name,
        "the host's name"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn a_pod_outlives_the_daemon_and_not_its_agent(context: &mut Context) -> Outcome {
    let (config, dir) = logs::logging_pod(context, "hostkill9");
    context.cri.pull(BUSYBOX).await?;
    let id = context.cri.run_pod_on(HOST, config.clone()).await?;
    let text = "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo $n; usleep 20000; done; sleep 1000";
    let writer = logs::logged(script("writer", BUSYBOX, text), "writer.log");
    let writer = context.cri.run(&id, &config, writer).await?;
    let brief = script("brief", BUSYBOX, "usleep 500000; exit 9");
    let brief = context.cri.run(&id, &config, brief).await?;
    let path = dir.join("writer.log");
    let deadline = Instant::now() + PATIENCE;
    while fs::metadata(&path).map_or(0, |meta| meta.len()) < 400 {
        pause(deadline, "the first lines").await?;
    }
    context.host.kill_daemon()?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    let cri = &context.cri;
    let (status, info) = cri.pod_status(&id).await?;
    check!(
        status.state() == PodSandboxState::SandboxReady,
        "{status:?}"
    );
    check!(
        cri.exited(&brief).await?.exit_code == 9,
        "the exit while no daemon ran"
    );
    let expected: String = (1..=300).map(|n| format!("{n}\n")).collect();
    let mut progress = Progress::default();
    loop {
        let got = logs::read(&path, "stdout")?;
        if got == expected.as_bytes() {
            break;
        }
        progress.pause(got.len(), "every line once").await?;
    }
    let third = cri
        .run(&id, &config, script("third", BUSYBOX, "exit 3"))
        .await?;
    check!(
        cri.exited(&third).await?.exit_code == 3,
        "a container after the restart"
    );

    // Without its agent nobody watches the pod any more: it ends as one whose machine has died.
    let info: serde_json::Value =
        serde_json::from_str(info.get("info").map_or("null", String::as_str))?;
    let agent = info
        .get("pid")
        .and_then(serde_json::Value::as_i64)
        .ok_or("no pid in the status")?;
    Command::new("kill")
        .args(["-KILL", &agent.to_string()])
        .status()?;
    let deadline = Instant::now() + PATIENCE;
    while cri.pod_status(&id).await?.0.state() == PodSandboxState::SandboxReady {
        pause(deadline, "the pod to be not ready").await?;
    }
    let status = cri.exited(&writer).await?;
    check!(
        status.exit_code == 137 && !status.reason.is_empty(),
        "{status:?}"
    );
    let procs = Command::new("pgrep")
        .args(["-x", "usleep|sleep 1000"])
        .output()?;
    check!(
        procs.stdout.is_empty(),
        "containers go on without their agent: {procs:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn the_policy_can_refuse(context: &mut Context) -> Outcome {
    let options = Options {
        sections: "[sandbox]\nhost_namespace_pods = \"reject\"\n".to_owned(),
        ..Options::default()
    };
    let mut host = Host::start("reject", &context.results, options).await?;
    let refused = host.cri().await?.run_pod(in_host_namespaces("no")).await;
    check!(
        refused.as_ref().is_err_and(|e| {
            e.code() == Code::FailedPrecondition && e.message().contains("hostNetwork")
        }),
        "{refused:?}"
    );
    host.stop_daemon().await
}
