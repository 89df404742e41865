//! Limits of containers on the node, read from the node's own cgroups, and the node as an agent
//! for its figures sees it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{
    HugepageLimit, LinuxContainerResources, UpdateContainerResourcesRequest,
};
use tonic::Code;

use super::support::{HOST, bind};
use crate::{
    Failure, Outcome,
    cases::BUSYBOX,
    check,
    cri::{Cri, pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("host_walls", cpusets_swap_and_huge_pages_are_limited),
        test!("host_walls", the_nodes_proc_and_cgroups_are_read_in_full),
    ]
}

/// Where a container's process is in the node's hierarchy.
fn cgroup(id: &str) -> Result<PathBuf, Failure> {
    fn find(dir: &Path, id: &str) -> Option<PathBuf> {
        let dirs = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
        dirs.filter(|path| path.is_dir()).find_map(|path| {
            let found = path.file_name().is_some_and(|name| name == id);
            if found { Some(path) } else { find(&path, id) }
        })
    }
    let found = find(Path::new("/sys/fs/cgroup"), id);
    Ok(found.ok_or_else(|| format!("no cgroup of container {id} on the node"))?)
}

async fn update(cri: &Cri, id: &str, linux: LinuxContainerResources) -> Result<(), tonic::Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..UpdateContainerResourcesRequest::default()
    };
    let mut runtime = cri.runtime.clone();
    runtime.update_container_resources(request).await.map(drop)
}

async fn cpusets_swap_and_huge_pages_are_limited(context: &mut Context) -> Outcome {
    const MIB: i64 = 1 << 20;
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("limits-host");
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let huge = |mib: u64| {
        vec![HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: mib << 20,
        }]
    };
    let mut limited = script("limited", BUSYBOX, "sleep 1000");
    limited.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        cpuset_cpus: "0".to_owned(),
        cpuset_mems: "0".to_owned(),
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 80 * MIB,
        hugepage_limits: huge(4),
        ..LinuxContainerResources::default()
    });
    let made = cri.run(&id, &config, limited).await?;
    let at = cgroup(&made)?;
    let expect = |files: &[(&str, String)]| -> Outcome {
        for (file, value) in files {
            let there = fs::read_to_string(at.join(file))?;
            check!(there.trim() == value, "{file}: {there:?}, not {value:?}");
        }
        Ok(())
    };
    let mib = |mib: i64| (mib * MIB).to_string();
    expect(&[
        ("cpuset.cpus", "0".to_owned()),
        ("cpuset.mems", "0".to_owned()),
        ("memory.max", mib(64)),
        ("memory.swap.max", mib(16)),
        ("hugetlb.2MB.max", mib(4)),
        ("hugetlb.2MB.rsvd.max", mib(4)),
    ])?;
    // Swap alone, then memory alone: the one is counted without the other.
    let mut change = LinuxContainerResources {
        memory_swap_limit_in_bytes: 96 * MIB,
        hugepage_limits: huge(2),
        ..LinuxContainerResources::default()
    };
    update(cri, &made, change.clone()).await?;
    expect(&[
        ("memory.max", mib(64)),
        ("memory.swap.max", mib(32)),
        ("hugetlb.2MB.max", mib(2)),
        ("hugetlb.2MB.rsvd.max", mib(2)),
        ("cpuset.cpus", "0".to_owned()),
    ])?;
    change = LinuxContainerResources {
        memory_limit_in_bytes: 128 * MIB,
        ..LinuxContainerResources::default()
    };
    update(cri, &made, change).await?;
    expect(&[("memory.max", mib(128)), ("memory.swap.max", mib(32))])?;

    // As a kubelet with the static policy gives processors: after the container was made.
    let plain = cri
        .run(&id, &config, script("plain", BUSYBOX, "sleep 1000"))
        .await?;
    let file = cgroup(&plain)?.join("cpuset.cpus");
    check!(fs::read_to_string(&file)?.trim().is_empty(), "not unset");
    let processors = |list: &str| LinuxContainerResources {
        cpuset_cpus: list.to_owned(),
        ..LinuxContainerResources::default()
    };
    update(cri, &plain, processors("0")).await?;
    let there = fs::read_to_string(&file)?;
    check!(there.trim() == "0", "cpuset.cpus: {there:?}");
    let told = cri.status(&plain).await?.resources.and_then(|r| r.linux);
    check!(
        told.as_ref().is_some_and(|linux| linux.cpuset_cpus == "0"),
        "{told:?}"
    );
    // What cannot be had is refused by name, and changes nothing.
    let refused = update(cri, &plain, processors("0;1")).await;
    check!(
        refused.as_ref().is_err_and(|status| {
            status.code() == Code::InvalidArgument && status.message().contains("cpuset_cpus")
        }),
        "{refused:?}"
    );
    let refused = update(cri, &plain, processors("60000")).await;
    check!(
        refused
            .as_ref()
            .is_err_and(|status| status.message().contains("cpuset.cpus")),
        "{refused:?}"
    );
    check!(fs::read_to_string(&file)?.trim() == "0", "it is changed");
    Ok(cri.remove_pod(&id).await?)
}

async fn the_nodes_proc_and_cgroups_are_read_in_full(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("node-agent");
    let id = cri.run_pod_on(HOST, config.clone()).await?;
    let mut agent = script("agent", BUSYBOX, "sleep 1000");
    agent.mounts = vec![
        bind("/proc", "/host/proc", true),
        bind("/sys", "/host/sys", true),
        bind("/sys/fs/cgroup", "/host/sys/fs/cgroup", true),
    ];
    let agent = cri.run(&id, &config, agent).await?;
    let own = std::process::id();
    for (place, rest) in [
        ("/proc", "version".to_owned()),
        ("/proc", "filesystems".to_owned()),
        ("/proc", "sys/kernel/osrelease".to_owned()),
        ("/proc", format!("{own}/comm")),
        ("/sys/fs/cgroup", "cgroup.controllers".to_owned()),
        ("/sys/fs/cgroup", "cgroup.subtree_control".to_owned()),
        ("/sys", "devices/system/cpu/possible".to_owned()),
    ] {
        let expected = fs::read_to_string(Path::new(place).join(&rest))?;
        let seen = cri
            .shell(&agent, &format!("cat /host{place}/{rest}"))
            .await?;
        check!(!seen.is_empty() && seen == expected, "{rest}: {seen:?}");
    }
    let memory = cri.shell(&agent, "cat /host/proc/meminfo").await?;
    let on_node = fs::read_to_string("/proc/meminfo")?;
    check!(
        memory.lines().count() == on_node.lines().count()
            && memory.lines().next() == on_node.lines().next(),
        "{memory}"
    );
    let file = cgroup(&agent)?.join("memory.max");
    let below = file.strip_prefix("/sys/fs/cgroup")?.display().to_string();
    let seen = cri
        .shell(&agent, &format!("cat /host/sys/fs/cgroup/{below}"))
        .await?;
    check!(seen == fs::read_to_string(&file)?, "{below}: {seen}");
    Ok(cri.remove_pod(&id).await?)
}
