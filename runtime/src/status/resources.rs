//! A container's limits as its status shows them: those that are in force, which need not be what was asked
//! for. Pure.

use bulkhead_proto::cri::LinuxContainerResources;

use crate::records::{ContainerRecord, MachineKind, SandboxRecord};

/// What holds for a container of this pod; of a pod without a record nothing is known but what was asked.
pub(super) fn in_force(
    record: &ContainerRecord,
    sandbox: Option<&SandboxRecord>,
) -> LinuxContainerResources {
    let mut limits = record.status.resources.clone();
    // An update reaches the VM, and no process in it.
    let linux = record.meta.config.linux.as_ref();
    let first = linux.and_then(|linux| linux.resources.as_ref());
    limits.oom_score_adj = first.map_or(0, |first| first.oom_score_adj);
    let Some(sandbox) = sandbox.filter(|sandbox| sandbox.machine == MachineKind::Vm) else {
        return limits;
    };
    // A guest has no swap: memory and swap together are at most the memory.
    limits.memory_swap_limit_in_bytes = match limits.memory_limit_in_bytes {
        limit if limit > 0 && limits.memory_swap_limit_in_bytes != 0 => limit,
        _ => 0,
    };
    match &sandbox.placement {
        Some(place) if !limits.cpuset_mems.is_empty() => {
            // The guest has one node; the VM's memory is that of all of its containers.
            limits.cpuset_mems.clone_from(&place.mems);
        }
        Some(_) => {}
        // Of a pod that an earlier release made.
        None => {
            limits.cpuset_cpus.clear();
            limits.cpuset_mems.clear();
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::records::{Placement, testing};

    fn asked() -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 80 << 20,
            oom_score_adj: 7,
            cpuset_cpus: "2-3".to_owned(),
            cpuset_mems: "1".to_owned(),
            ..LinuxContainerResources::default()
        }
    }

    fn container() -> ContainerRecord {
        let mut record = testing::container("c", "a");
        record.status.resources = asked();
        let config = &mut Arc::make_mut(&mut record.meta).config;
        let linux = config.linux.get_or_insert_default();
        linux.resources.get_or_insert_default().oom_score_adj = 5;
        record
    }

    #[test]
    fn on_the_host_the_cgroup_has_what_was_asked_for() {
        let mut sandbox = testing::sandbox("a");
        sandbox.machine = MachineKind::Host;
        let shown = in_force(&container(), Some(&sandbox));
        let expected = LinuxContainerResources {
            oom_score_adj: 5,
            ..asked()
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn in_a_vm_only_what_holds_there_is_shown() {
        let mut sandbox = testing::sandbox("a");
        let mut expected = LinuxContainerResources {
            oom_score_adj: 5,
            memory_swap_limit_in_bytes: 64 << 20,
            cpuset_cpus: String::new(),
            cpuset_mems: String::new(),
            ..asked()
        };
        assert_eq!(in_force(&container(), Some(&sandbox)), expected);
        sandbox.placement = Some(Placement {
            cpus: "2-5".to_owned(),
            mems: "0-1".to_owned(),
            vcpus: vec!["2".to_owned(), "3".to_owned()],
        });
        expected.cpuset_cpus = "2-3".to_owned();
        expected.cpuset_mems = "0-1".to_owned();
        assert_eq!(in_force(&container(), Some(&sandbox)), expected);
        // Without a limit of memory there is none of the two together.
        let mut container = container();
        container.status.resources.memory_limit_in_bytes = -1;
        container.status.resources.memory_swap_limit_in_bytes = -1;
        let shown = in_force(&container, Some(&sandbox));
        assert_eq!(shown.memory_swap_limit_in_bytes, 0);
    }
}
