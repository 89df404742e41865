//! Which of the host's processors each vCPU runs on. The VMM's cgroup bounds that in any case.

use std::collections::BTreeMap;

use bulkhead_contract::vmm::Pin;

use super::{Machine, MachineError};

impl Machine {
    /// Has the vCPUs run where `pin` says; those that it does not name, anywhere.
    ///
    /// # Errors
    /// When a vCPU is named that is not there or twice, or a group has no processors (nothing is
    /// changed then), or the host refuses. The vCPUs before that one are pinned.
    pub fn pin(&self, pin: &Pin) -> Result<(), MachineError> {
        let there = u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX);
        let places = places(pin, there)?;
        for vcpu in &self.vcpus {
            vcpu.pin(places.get(&vcpu.id()).copied())?;
        }
        Ok(())
    }
}

/// The processors of each vCPU, of so many.
fn places(pin: &Pin, there: u8) -> Result<BTreeMap<u8, &[u16]>, MachineError> {
    let mut places = BTreeMap::new();
    for group in &pin.groups {
        if group.cpus.is_empty() {
            return Err(MachineError::Pin("a group has no processors".to_owned()));
        }
        for vcpu in &group.vcpus {
            if *vcpu >= there {
                return Err(MachineError::Pin(format!(
                    "there is no vCPU {vcpu}, but {there} from 0 on"
                )));
            }
            if places.insert(*vcpu, group.cpus.as_slice()).is_some() {
                return Err(MachineError::Pin(format!("vCPU {vcpu} is named twice")));
            }
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use bulkhead_contract::vmm::PinGroup;

    use super::*;

    fn pin(groups: &[(&[u8], &[u16])]) -> Pin {
        let group = |(vcpus, cpus): &(&[u8], &[u16])| PinGroup {
            vcpus: vcpus.to_vec(),
            cpus: cpus.to_vec(),
        };
        Pin {
            groups: groups.iter().map(group).collect(),
        }
    }

    #[test]
    fn each_vcpu_has_one_place() {
        let given = pin(&[(&[0], &[7]), (&[1, 3], &[2, 130])]);
        let found = places(&given, 4).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(
            (found[&0], found[&3]),
            ([7].as_slice(), [2, 130].as_slice())
        );
        assert!(places(&Pin::default(), 1).unwrap().is_empty());
        for bad in [
            pin(&[(&[4], &[0])]),
            pin(&[(&[1, 1], &[0])]),
            pin(&[(&[1], &[0]), (&[2, 1], &[3])]),
            pin(&[(&[1], &[])]),
        ] {
            assert!(matches!(places(&bad, 4), Err(MachineError::Pin(_))));
        }
    }
}
