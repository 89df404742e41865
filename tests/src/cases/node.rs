//! The guest as a node: kernel parameters, limits and clock of a pod's VM, and what the node sees of
//! it: its cgroup's name and its place with the OOM killer.

use std::{
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use bulkhead_proto::cri::{
    ContainerConfig, Int64Value, LinuxContainerResources, LinuxContainerSecurityContext,
    NamespaceMode, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};
use tokio::time::Instant;
use tonic::Code;

use super::{
    BUSYBOX,
    contexts::{capabilities, pids, with},
};
use crate::{
    Failure, Outcome, check,
    cri::{Cri, PATIENCE, pause, pod, script},
    host::{Host, Options},
    leaks,
    pod_cgroup::{PodCgroup, pod_in},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("node", a_small_guest_has_a_nodes_limits),
        test!("node", the_pods_pids_limit_holds_in_the_guest),
        test!("node", low_ports_and_ping_are_open_to_every_user),
        test!("node", a_vmm_has_its_pods_oom_score),
        test!("node", a_guests_clock_follows_the_hosts),
        test!("node", a_slice_is_taken_by_its_path),
    ]
}

/// Processes of its own, so that it can kill them all.
fn alone(config: ContainerConfig) -> ContainerConfig {
    let context = LinuxContainerSecurityContext {
        namespace_options: pids(NamespaceMode::Container, ""),
        ..LinuxContainerSecurityContext::default()
    };
    with(config, context)
}

async fn a_small_guest_has_a_nodes_limits(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod_in("limits", "", 256 << 20, 0);
    let id = cri.run_pod(config.clone()).await?;
    let main = alone(script("main", BUSYBOX, "sleep 1000"));
    let main = cri.run(&id, &config, main).await?;
    for (name, least) in [
        ("vm/overcommit_memory", 1),
        ("vm/max_map_count", 262_144),
        ("fs/inotify/max_user_watches", 65_536),
        ("fs/inotify/max_user_instances", 1_024),
        ("fs/epoll/max_user_watches", 1_000_000),
        ("fs/file-max", 1_048_576),
        ("net/netfilter/nf_conntrack_max", 65_536),
        ("kernel/pid_max", 4_194_304),
        ("kernel/threads-max", 100_000),
        ("kernel/panic_on_oops", 1),
        ("kernel/keys/root_maxkeys", 1_000_000),
    ] {
        let text = cri.shell(&main, &format!("cat /proc/sys/{name}")).await?;
        let value: i64 = text.trim().parse()?;
        check!(
            value >= least,
            "{name} is {value}, at least {least} expected"
        );
    }

    // 100,000 open files, in ten processes that open and then sleep.
    let open = "files=$(yes /dev/null | head -n 10000); \
                for i in $(seq 10); do tail -q -s 1000 -f $files & done; \
                while open=$(cut -f1 /proc/sys/fs/file-nr) && [ $open -lt 100000 ]; do \
                    n=$(ls /proc | grep -c '^[0-9]'); \
                    [ $n -ge 12 ] || { echo $n processes, $open files; exit 1; }; \
                    sleep 1; \
                done; echo $open; kill -9 -1";
    let done = cri.exec_for(&main, &["/bin/sh", "-c", open], 110).await?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let count = said
        .lines()
        .last()
        .and_then(|line| line.trim().parse::<u64>().ok());
    check!(
        count.is_some_and(|count| count >= 100_000),
        "{said:?} {:?}",
        String::from_utf8_lossy(&done.stderr)
    );

    // A crash leaves nothing where it happens.
    let crash = "mkdir /cwd && cd /cwd && ulimit -c unlimited && \
                 { sh -c 'kill -SEGV $$'; echo $?; } 2>/dev/null; ls";
    let said = cri.shell(&main, crash).await?;
    check!(said == "139\n", "{said:?}");
    Ok(cri.remove_pod(&id).await?)
}

/// Forks until it may not or there are 200, says how many processes its container has, ends them.
const BOMB: &str = "sh -c 'i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done' 2>&1; \
                    read now </sys/fs/cgroup/pids.current; echo $now; kill -9 -1";

async fn the_pods_pids_limit_holds_in_the_guest(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let cgroup = PodCgroup::make("/kubepods/burstable/poduid-pids")?;
    cgroup.set("pids.max", 64)?;
    let config = pod_in("pids", cgroup.parent(), 256 << 20, 0);
    let id = cri.run_pod(config.clone()).await?;
    let others = "for i in $(seq 20); do sleep 1000 & done; wait";
    cri.run(&id, &config, alone(script("others", BUSYBOX, others)))
        .await?;
    let bomb = alone(script("bomb", BUSYBOX, "sleep 1000"));
    let bomb = cri.run(&id, &config, bomb).await?;
    let count = async || -> Result<(u64, String), Failure> {
        let said = cri.exec(&bomb, &["/bin/sh", "-c", BOMB]).await?.stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let last = said.lines().last().unwrap_or_default();
        Ok((last.parse().map_err(|_| said.clone())?, said))
    };
    let (now, said) = count().await?;
    check!(
        said.contains("can't fork") && (20..=64 - 21).contains(&now),
        "{now} processes: {said}"
    );
    // The VM has threads on the node, and lives.
    let used = cgroup.read("pids.current")?;
    check!(
        used.trim().parse::<u64>()? < 64,
        "{used} threads on the node"
    );

    cgroup.set("pids.max", "max")?;
    let update = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.clone(),
        ..UpdatePodSandboxResourcesRequest::default()
    };
    cri.runtime
        .clone()
        .update_pod_sandbox_resources(update)
        .await?;
    let (now, said) = count().await?;
    check!(now > 200, "{now} processes without a limit: {said}");
    cri.remove_pod(&id).await?;
    cgroup.remove()
}

async fn low_ports_and_ping_are_open_to_every_user(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let serve = "httpd -p 80 -h /etc && wget -qO- http://127.0.0.1/passwd | grep -c root; \
                 cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
                     /proc/sys/net/ipv4/ping_group_range";
    for handler in ["kvm", "host"] {
        let mut config = pod(&format!("ports-{handler}"));
        let user = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            capabilities: capabilities(&[], &["ALL"]),
            ..LinuxContainerSecurityContext::default()
        };
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = with(script("main", BUSYBOX, "sleep 1000"), user.clone());
        let main = cri.run(&id, &config, main).await?;
        let said = cri.shell(&main, serve).await?;
        check!(said == "1\n0\n0\t2147483647\n", "{handler}: {said:?}");
        cri.remove_pod(&id).await?;

        // The pod's own win.
        if let Some(linux) = &mut config.linux {
            let name = "net.ipv4.ip_unprivileged_port_start".to_owned();
            linux.sysctls.insert(name, "1024".to_owned());
            let name = "net/ipv4/ping_group_range".to_owned();
            linux.sysctls.insert(name, "1 0".to_owned());
        }
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = with(script("own", BUSYBOX, "sleep 1000"), user);
        let main = cri.run(&id, &config, main).await?;
        let said = cri
            .shell(
                &main,
                "httpd -p 80 2>/dev/null; echo $?; \
                 cat /proc/sys/net/ipv4/ip_unprivileged_port_start \
                     /proc/sys/net/ipv4/ping_group_range",
            )
            .await?;
        check!(said == "1\n1024\n1\t0\n", "{handler}: {said:?}");
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

/// The process in the pod's status: its VMM, or its agent.
async fn process(cri: &Cri, id: &str) -> Result<i64, Failure> {
    let (_, info) = cri.pod_status(id).await?;
    let text = info.get("info").map_or("null", String::as_str);
    let info: serde_json::Value = serde_json::from_str(text)?;
    let pid = info.get("pid").and_then(serde_json::Value::as_i64);
    pid.ok_or_else(|| "no pid in the status".into())
}

fn oom_score(pid: impl std::fmt::Display) -> Result<i32, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    Ok(text.trim().parse()?)
}

fn with_score(name: &str, score: i64) -> ContainerConfig {
    let mut config = script(name, BUSYBOX, "sleep 1000");
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default().oom_score_adj = score;
    config
}

async fn a_vmm_has_its_pods_oom_score(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let daemon = context.host.daemon_pid().ok_or("no daemon")?;
    // As its unit file has it.
    fs::write(format!("/proc/{daemon}/oom_score_adj"), "-999")?;
    let parent = "/kubepods/burstable/poduid-score";
    let cgroup = PodCgroup::make(parent)?;
    let config = pod_in("score", parent, 128 << 20, 0);
    let id = cri.run_pod(config.clone()).await?;
    let vmm = process(cri, &id).await?;
    check!(oom_score(vmm)? == 999, "{} of a new pod", oom_score(vmm)?);
    let first = cri.run(&id, &config, with_score("first", 950)).await?;
    check!(oom_score(vmm)? == 950, "{}", oom_score(vmm)?);
    cri.run(&id, &config, with_score("second", 300)).await?;
    check!(oom_score(vmm)? == 300, "{}", oom_score(vmm)?);
    let inside = cri
        .shell(&first, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")
        .await?;
    check!(inside.ends_with("950\n"), "in the container: {inside}");
    let update = UpdateContainerResourcesRequest {
        container_id: first.clone(),
        linux: Some(LinuxContainerResources {
            oom_score_adj: -5,
            ..LinuxContainerResources::default()
        }),
        ..UpdateContainerResourcesRequest::default()
    };
    cri.runtime
        .clone()
        .update_container_resources(update)
        .await?;
    check!(oom_score(vmm)? == -5, "{}", oom_score(vmm)?);
    cri.remove_pod(&id).await?;

    // On the host nothing of a pod has the daemon's.
    let config = pod_in("score-host", parent, 0, 0);
    let id = cri.run_pod_on("host", config.clone()).await?;
    cri.run(&id, &config, with_score("main", 950)).await?;
    let inside = fs::read_dir(cgroup.path())?.flatten();
    let leaf = inside.map(|entry| entry.path()).find(|path| path.is_dir());
    let mut scores = Vec::new();
    for level in fs::read_dir(leaf.ok_or("no cgroup of the pod")?)?.flatten() {
        let procs = fs::read_to_string(level.path().join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            scores.push(oom_score(pid)?);
        }
    }
    check!(
        scores.contains(&950) && scores.iter().all(|score| *score >= -998),
        "{scores:?}"
    );
    cri.remove_pod(&id).await?;
    fs::write(format!("/proc/{daemon}/oom_score_adj"), "0")?;
    cgroup.remove()
}

/// The wall clock, in nanoseconds since the epoch.
fn now() -> Result<i128, Failure> {
    Ok(i128::try_from(
        SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos(),
    )?)
}

async fn a_guests_clock_follows_the_hosts(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("clock");
    let id = cri.run_pod(config.clone()).await?;
    let context = LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    };
    let main = with(script("main", BUSYBOX, "sleep 1000"), context);
    let main = cri.run(&id, &config, main).await?;
    // A guest tells its time to the nanosecond when it starts a container.
    let in_bounds = async |name: &str| -> Outcome {
        let made = cri
            .create(&id, &config, script(name, BUSYBOX, "sleep 1000"))
            .await?;
        let before = now()?;
        cri.start(&made).await?;
        let after = now()?;
        let started = i128::from(cri.status(&made).await?.started_at);
        let off = 10_000_000;
        check!(
            before - off <= started && started <= after + off,
            "{name}: started at {started}, between {before} and {after} by the host's clock"
        );
        Ok(())
    };
    in_bounds("first").await?;

    for wrong in ["2020-01-01 00:00:00", "2040-01-01 00:00:00"] {
        let uptime = "read up rest </proc/uptime; echo ${up%.*}";
        let before: u64 = cri.shell(&main, uptime).await?.trim().parse()?;
        cri.shell(&main, &format!("date -s '{wrong}' >/dev/null"))
            .await?;
        // The host's clock is set, if only to what it was: as after a sleep, the guests' follow at once.
        let set = Command::new("sh")
            .args(["-c", "date -s @$(date +%s.%N) >/dev/null"])
            .status()?;
        check!(set.success(), "{set}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seconds: i128 = cri.shell(&main, "date +%s").await?.trim().parse()?;
            if (seconds - now()? / 1_000_000_000).abs() < 60 {
                break;
            }
            pause(deadline, "the guest's clock to be corrected").await?;
        }
        in_bounds(&wrong[..4]).await?;
        let after: u64 = cri.shell(&main, uptime).await?.trim().parse()?;
        check!(
            (before..before + 600).contains(&after),
            "monotonic time went from {before} to {after}"
        );
    }
    Ok(cri.remove_pod(&id).await?)
}

async fn a_slice_is_taken_by_its_path(context: &mut Context) -> Outcome {
    let options = Options {
        sections: "[cgroup]\ndriver = \"systemd\"\ndefault_parent = \"/bulkhead.slice/bulkhead-test.slice\"\n".to_owned(),
        ..Options::default()
    };
    let mut host = Host::start("slices", &context.results, options).await?;
    let cri = host.cri().await?;
    let pod = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poduid_slice.slice";
    for (handler, parent, expected) in [
        ("kvm", format!("/{pod}"), pod),
        ("host", format!("/{pod}"), pod),
        (
            "host",
            "kubepods-burstable-poduid_slice.slice".to_owned(),
            pod,
        ),
        (
            "host",
            "/wrong.slice/kubepods-burstable-poduid_slice.slice".to_owned(),
            pod,
        ),
        ("host", String::new(), "bulkhead.slice/bulkhead-test.slice"),
    ] {
        let config = pod_in("slice", &parent, 0, 0);
        let id = cri.run_pod_on(handler, config).await?;
        let pid = process(&cri, &id).await?;
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        check!(
            cgroup.starts_with(&format!("0::/{expected}/bulkhead-{id}")),
            "{handler} {parent:?}: the process is in {cgroup}"
        );
        cri.remove_pod(&id).await?;
    }
    for (parent, words) in [
        (
            "/kubepods/burstable/poduid",
            "expected cgroupsPath to be of format",
        ),
        (
            "/kubepods.slice/kubepods--x.slice",
            "invalid slice name: kubepods--x.slice",
        ),
    ] {
        let refused = cri
            .run_pod_on("host", pod_in("refused", parent, 0, 0))
            .await;
        check!(
            refused.as_ref().is_err_and(|status| {
                status.code() == Code::InvalidArgument && status.message().contains(words)
            }),
            "{refused:?}"
        );
    }
    for slice in [pod, "bulkhead.slice/bulkhead-test.slice"] {
        PodCgroup::made(slice).remove()?;
    }
    // The node's bridge came with its network.
    leaks::output("ip", &["link", "delete", &host.bridge()])?;
    host.stop_daemon().await
}
