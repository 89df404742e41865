//! The guest's kernel parameters: what containers find on a node, whatever the size of the guest.
//!
//! The kernel derives many limits from the memory it boots with. A guest boots small, so they would be a
//! fraction of a node's, and stay so when memory is plugged. What they bound is charged to the
//! containers' memory cgroups; so here they are those of a large node.
//!
//! Not here: a pod's own parameters, which are set over these ([`crate::net::sysctl`]).

use std::fs;
use std::io;
use std::path::Path;

use crate::report::Report;

/// Parameters by their path below /proc/sys. One that the kernel was built without is passed over.
const PARAMETERS: &[(&str, &str)] = &[
    // What the kubelet sets and checks on a node (setupKernelTunables). It has kernel.panic = 10, too: a
    // guest's panic ends its VM at once (panic=-1 on the command line), which says more.
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
    // As distributions have them: Elasticsearch and its kind ask for 262144 maps; process numbers
    // and open files end with the cgroup's limits, not with these.
    ("vm/max_map_count", "1048576"),
    ("kernel/pid_max", "4194304"),
    ("kernel/threads-max", "4194304"),
    ("fs/file-max", "9223372036854775807"),
    // The most the kernel itself would give a large machine.
    ("fs/inotify/max_user_watches", "1048576"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/fanotify/max_user_marks", "1048576"),
    ("fs/epoll/max_user_watches", "4194304"),
    ("user/max_user_namespaces", "65536"),
    ("user/max_pid_namespaces", "65536"),
    ("user/max_uts_namespaces", "65536"),
    ("user/max_ipc_namespaces", "65536"),
    ("user/max_net_namespaces", "65536"),
    ("user/max_mnt_namespaces", "65536"),
    ("user/max_cgroup_namespaces", "65536"),
    ("user/max_time_namespaces", "65536"),
    // kube-proxy's least; the buckets are on the VMM's command line.
    ("net/netfilter/nf_conntrack_max", "131072"),
    // Pages for all sockets together, and bytes for one, as the kernel has them with 8 GiB.
    ("net/ipv4/tcp_mem", "98304 131072 196608"),
    ("net/ipv4/udp_mem", "196608 262144 393216"),
    ("net/ipv4/tcp_rmem", "4096 131072 6291456"),
    ("net/ipv4/tcp_wmem", "4096 16384 4194304"),
    ("net/ipv4/tcp_max_orphans", "32768"),
    ("net/ipv4/tcp_max_tw_buckets", "32768"),
    ("net/ipv4/tcp_max_syn_backlog", "1024"),
    // Yama as its authors set it, not as Debian does: who may trace a process is its ancestors and those
    // it names. Here and not on the command line, where it costs a boot a mount of procfs and its end.
    ("kernel/yama/ptrace_scope", "1"),
    // No core files (core(5): an empty pattern). The kernel's own pattern drops them into the working
    // directory, which may be a volume; a program to pipe them to is on a node, not here.
    ("kernel/core_pattern", "\n"),
];

/// Sets them. What the kernel refuses is on the console: a guest is better with the rest than not
/// there.
pub fn set_all() {
    for (name, error) in set_below(Path::new("/proc/sys")) {
        tracing::warn!(name, error = %Report(&error), "a kernel parameter is not set");
    }
}

/// Sets them below a directory; gives those that failed.
fn set_below(root: &Path) -> Vec<(&'static str, io::Error)> {
    let set = |&(name, value): &(&'static str, &str)| {
        // Not made where it is not: in procfs that is refused in any case.
        let written = fs::File::options()
            .write(true)
            .open(root.join(name))
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        match written {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Some((name, error)),
            _ => None,
        }
    };
    PARAMETERS.iter().filter_map(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_is_passed_over_and_the_rest_is_set() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("vm")).unwrap();
        fs::write(at("vm/overcommit_memory"), "0").unwrap();
        // Cannot be written.
        fs::create_dir_all(at("kernel/pid_max")).unwrap();
        let failed = set_below(root.path());
        assert_eq!(fs::read(at("vm/overcommit_memory")).unwrap(), b"1");
        let names: Vec<_> = failed.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["kernel/pid_max"]);
        assert!(!at("vm/max_map_count").exists());
    }
}
