//! What a fresh guest, or a fresh agent on the host, is told: SetupSandbox, from the pod's record and
//! its network.

use std::{path::Path, time::Duration};

use bulkhead_proto::agent::{MemoryPolicy, SetupSandboxRequest};

use super::{SCRATCH, SandboxError, dns, validate::ValidatedPod};
use crate::{
    clock::now_ns,
    config::Paths,
    network::Attached,
    records::{MachineKind, SandboxRecord, Shape},
};

/// The writable disk's file in the pod's state directory.
pub(super) const SCRATCH_FILE: &str = "scratch.img";
/// The agent mounts a disk and sets addresses: milliseconds, but guests share CPUs.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// The input pool holds 256 bits; twice that leaves no doubt.
const ENTROPY: usize = 64;

/// The request for this pod; `pids_limit` as the agent's protocol has it.
pub(super) async fn request(
    record: &SandboxRecord,
    wanted: &ValidatedPod,
    attached: &Attached,
    paths: &Paths,
    pids_limit: u64,
) -> Result<SetupSandboxRequest, SandboxError> {
    let entropy = bulkhead_common::random::<ENTROPY>().map_err(|source| SandboxError::Os {
        action: "read random bytes for the guest".to_owned(),
        source,
    })?;
    // A host without the file has no name servers to pass on.
    let host = tokio::fs::read_to_string("/etc/resolv.conf")
        .await
        .unwrap_or_default();
    let linux = record.config.linux.as_ref();
    let scratch_file = match wanted.machine {
        MachineKind::Vm => String::new(),
        MachineKind::Host => file_name(&paths.pod_state(&record.id).join(SCRATCH_FILE))?,
    };
    Ok(SetupSandboxRequest {
        hostname: wanted.hostname.clone(),
        machine_id: record.id.clone(),
        clock_unix_ns: now_ns(),
        entropy: entropy.to_vec().into(),
        sysctls: linux.map(|l| l.sysctls.clone()).unwrap_or_default(),
        dns: Some(dns::choose(
            record.config.dns_config.as_ref(),
            attached.dns.clone(),
            &host,
        )),
        scratch_disk: SCRATCH.to_owned(),
        online_cpus: record.shape.vcpus,
        network: Some(attached.network.clone()),
        shared_pid_namespace: wanted.shared_pid,
        user_namespace: wanted.user_namespace,
        scratch_file,
        pids_limit,
        memory: memory_policy(&record.shape),
    })
}

/// What memory the containers of a VM may use; a pod on the host has its cgroup's limit.
pub(super) fn memory_policy(shape: &Shape) -> Option<MemoryPolicy> {
    let limits = shape.limits?;
    let bytes = |mib: u64| mib.saturating_mul(1 << 20);
    Some(MemoryPolicy {
        containers_max: shape.containers_memory.unwrap_or(0),
        guest_max: match limits.elastic {
            true => bytes(limits.max_memory_mib),
            false => 0,
        },
        guest_bytes: bytes(limits.boot_memory_mib),
    })
}

/// A path as the agent's protocol has it.
fn file_name(path: &Path) -> Result<String, SandboxError> {
    let name = path.to_str().map(ToOwned::to_owned);
    name.ok_or_else(|| SandboxError::Invalid {
        what: format!("the path {} is not UTF-8", path.display()),
    })
}
