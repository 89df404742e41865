//! Which sockets a container may make: all but AF_VSOCK, by a small BPF program on its cgroup.
//! vsock leads to the agent and the daemon, which are not for containers.
//!
//! The kernel asks such programs about every way to make a socket (socket(2), socketcall(2) of
//! 32-bit programs, io_uring), unlike a seccomp filter, and those of a cgroup about what is below
//! it. It asks about AF_VSOCK by a patch of the guest's kernel
//! (`guest-kernel/patches/vsock-cgroup-bpf.patch`) and not elsewhere. So there is no such filter on
//! a host, where vsock does not lead to the agent.

use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::bpf::{
    self, BpfError, CONTEXT, EXIT, Instruction, JUMP_NOT_EQUAL, LOAD_WORD, RESULT, SET, instruction,
};
use super::device_filter::allows_everything;
use crate::paths::Paths;

/// Where the context of the program (struct bpf_sock, uapi/linux/bpf.h) has the family.
const FAMILY_AT: i16 = 4;
const FAMILY: u8 = 2;

/// Refuses AF_VSOCK, allows every other family.
fn program() -> [Instruction; 6] {
    [
        instruction(LOAD_WORD, FAMILY, CONTEXT, FAMILY_AT, 0),
        instruction(JUMP_NOT_EQUAL, FAMILY, 0, 2, libc::AF_VSOCK),
        instruction(SET, RESULT, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(SET, RESULT, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// Whether a container gets the filter. A privileged one, which is one with every device, does not:
/// it controls the guest anyway.
fn wanted(resources: &LinuxResources, paths: &Paths) -> bool {
    paths.host().is_none() && !allows_everything(resources)
}

/// Puts the filter on a container's cgroup, before its first process is in it.
///
/// # Errors
/// If the kernel refuses.
pub fn attach(cgroup: &Path, resources: &LinuxResources, paths: &Paths) -> Result<(), BpfError> {
    if !wanted(resources, paths) {
        return Ok(());
    }
    bpf::attach(bpf::SOCKET, cgroup, &program())
}

#[cfg(test)]
mod tests {
    use super::super::bpf::machine::run;
    use super::*;
    use crate::paths::GUEST_BASE;

    #[test]
    fn only_vsock_sockets_are_refused() {
        // bound_dev_if, family, type, protocol.
        for family in 0..64 {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
                let allowed = run(&program(), &[0, family, kind, 0]);
                assert_eq!(allowed, family != 40, "family {family}, type {kind}");
            }
        }
        // The other fields are not the family.
        assert!(run(&program(), &[40, libc::AF_INET, 40, 40]));
    }

    #[test]
    fn only_privileged_containers_have_no_socket_filter() {
        let paths = Paths::new(GUEST_BASE);
        let wants = |json| wanted(&serde_json::from_str(json).unwrap(), &paths);
        assert!(wants("{}"));
        assert!(wants(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":8,"access":"rwm"}]}"#
        ));
        assert!(!wants(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#));
    }
}
