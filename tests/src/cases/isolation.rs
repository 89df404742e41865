//! What the host shows of a pod: one unprivileged process, in the cgroup it was given, no larger
//! than allowed.

use std::{collections::BTreeMap, fs};

use tonic::Code;

use crate::{
    Failure, Outcome, check,
    cri::pod,
    leaks::Snapshot,
    pod_cgroup::{PodCgroup, pod_in},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("isolation", one_unprivileged_process_per_pod),
        test!("isolation", the_guest_fits_its_cgroup),
    ]
}

/// The VMM processes: pid and the fields of its status.
fn machines() -> Result<BTreeMap<u32, BTreeMap<String, String>>, Failure> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.parse().ok())
        else {
            continue;
        };
        let Ok(status) = fs::read_to_string(path.join("status")) else {
            continue;
        };
        let fields: BTreeMap<String, String> = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
            .collect();
        if fields
            .get("Name")
            .is_some_and(|name| name.starts_with("bulkhead-vmm"))
        {
            found.insert(pid, fields);
        }
    }
    Ok(found)
}

async fn one_unprivileged_process_per_pod(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let ids = [
        cri.run_pod(pod("one")).await?,
        cri.run_pod(pod("two")).await?,
    ];
    let found = machines()?;
    check!(found.len() == 2, "{} processes for two pods", found.len());
    let mut users = Vec::new();
    for (pid, fields) in &found {
        let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let uid = field("Uid")
            .split_whitespace()
            .next()
            .unwrap_or("0")
            .to_owned();
        check!(uid != "0", "process {pid} runs as root");
        users.push(uid);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            check!(field(set) == "0000000000000000", "{set} is {}", field(set));
        }
        check!(field("NoNewPrivs") == "1", "no_new_privs is not set");
        for namespace in ["user", "mnt", "pid", "net", "ipc", "uts"] {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/{namespace}"))?;
            let ours = fs::read_link(format!("/proc/self/ns/{namespace}"))?;
            check!(theirs != ours, "the {namespace} namespace is the host's");
        }
        files_are_the_pods_own(*pid)?;
        only_the_file_server_has_capabilities(*pid)?;
    }
    check!(users[0] != users[1], "two pods share the user {}", users[0]);
    // Besides them, the daemon alone.
    let daemon = context.host.daemon_pid().ok_or("no daemon")?;
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children"))?;
    for child in children.split_whitespace() {
        check!(
            found.contains_key(&child.parse()?),
            "the daemon has a child {child} besides"
        );
    }
    for id in ids {
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

/// Nothing of the host's files but the pod's own directory, and on it the pod's share, which is
/// read-only itself and takes the volumes the host puts there, never the other way round.
fn files_are_the_pods_own(pid: u32) -> Outcome {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let fields: Vec<Vec<&str>> = mounts.lines().map(|l| l.split(' ').collect()).collect();
    let good = match fields.as_slice() {
        [own, share] => {
            own[3].ends_with("/vm")
                && own[4] == "/"
                && share[3].ends_with("/shared")
                && share[4] == "/share"
                && share[5].split(',').any(|flag| flag == "ro")
                && share[6].starts_with("master:")
        }
        _ => false,
    };
    check!(good, "it sees {mounts}");
    Ok(())
}

/// The threads that serve the pod's volumes may own files for others (capabilities(7)); no other
/// thread has any capability.
fn only_the_file_server_has_capabilities(pid: u32) -> Outcome {
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, FSETID 4, SETGID 6, SETUID 7.
    const FILES: u64 = 0xdb;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path();
        let name = fs::read_to_string(path.join("comm"))?;
        let status = fs::read_to_string(path.join("status"))?;
        let allowed = if name.starts_with("fs") { FILES } else { 0 };
        for line in status.lines().filter(|line| line.starts_with("Cap")) {
            let (set, mask) = line.split_once(":\t").ok_or("no capability set")?;
            let mask = u64::from_str_radix(mask, 16)?;
            check!(
                mask & !allowed == 0,
                "the thread {} has {set} {mask:x}",
                name.trim()
            );
        }
    }
    Ok(())
}

async fn the_guest_fits_its_cgroup(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let place = PodCgroup::make("/kubepods/burstable/poduid-sized")?;
    let parent = place.parent();
    let (memory, overhead) = (192_i64 << 20, 96_i64 << 20);
    place.set("memory.max", memory + overhead)?;
    let id = cri
        .run_pod(pod_in("sized", parent, memory, overhead))
        .await?;
    let (pid, _) = machines()?.pop_first().ok_or("no process")?;
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    check!(cgroup.contains(parent), "the process is in {cgroup}");
    let (_, info) = cri.pod_status(&id).await?;
    let text = info.values().cloned().collect::<String>();
    check!(
        text.contains("memory"),
        "the status does not tell the guest's memory: {text}"
    );
    let events = place.read("memory.events")?;
    check!(events.contains("oom_kill 0"), "{events}");
    cri.remove_pod(&id).await?;
    // Less than boots, on a level above the pod: said at once, with nothing left.
    fs::write(place.above().join("memory.max"), (64 << 20).to_string())?;
    let before = Snapshot::take(&context.host)?;
    let refused = cri.run_pod(pod_in("small", parent, 8 << 20, 0)).await;
    let codes = [Code::InvalidArgument, Code::FailedPrecondition];
    check!(
        refused.as_ref().is_err_and(|s| codes.contains(&s.code())),
        "{refused:?}"
    );
    before.compare(&context.host).await?;
    place.remove()
}
