//! From the names of the OCI spec to the kernel's sets, and their order around a change of user.

use oci_spec::runtime::{Capabilities, LinuxCapabilities};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The five sets of a process (capabilities(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    bounding: CapabilitySet,
    permitted: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    ambient: CapabilitySet,
}

fn set(names: Option<&Capabilities>) -> CapabilitySet {
    let names = names.into_iter().flatten();
    names
        .filter_map(|name| CapabilitySet::from_name(&name.to_string()))
        .collect()
}

impl Sets {
    /// Those of a spec; without any a process has none.
    pub fn of(spec: Option<&LinuxCapabilities>) -> Self {
        let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            set(spec.and_then(|spec| of(spec).as_ref()))
        };
        Self {
            bounding: set(LinuxCapabilities::bounding),
            permitted: set(LinuxCapabilities::permitted),
            effective: set(LinuxCapabilities::effective),
            inheritable: set(LinuxCapabilities::inheritable),
            ambient: set(LinuxCapabilities::ambient),
        }
    }

    /// Whether the process may mount and write what it has mounted.
    pub fn mounts(&self) -> bool {
        self.bounding.contains(CapabilitySet::SYS_ADMIN)
    }

    /// The first step, as root: what execve can ever give is limited.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn limit(&self) -> Result<(), Errno> {
        for number in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if self.bounding.contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // Beyond the kernel's last capability.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The second, as the user: what the process has. With `filter` it may still load a seccomp
    /// filter; that permission ends with execve, which takes the permitted set from the others.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn take(&self, filter: bool) -> Result<(), Errno> {
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: self.effective,
                permitted: self.permitted | Self::more(filter),
                inheritable: self.inheritable,
            },
        )?;
        // Old kernels have no ambient set.
        match rustix::thread::clear_ambient_capability_set() {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
        for one in self.ambient.iter() {
            rustix::thread::configure_capability_in_ambient_set(one, true)?;
        }
        Ok(())
    }

    /// The third, right before the filter is loaded.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn allow_filter(&self) -> Result<(), Errno> {
        let more = Self::more(true);
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: self.effective | more,
                permitted: self.permitted | more,
                inheritable: self.inheritable,
            },
        )
    }

    fn more(filter: bool) -> CapabilitySet {
        if filter {
            CapabilitySet::SYS_ADMIN
        } else {
            CapabilitySet::empty()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_spec_has_a_bit() {
        use oci_spec::runtime::Capability;
        use std::str::FromStr;

        let mut seen = CapabilitySet::empty();
        for (name, _) in CapabilitySet::all().iter_names() {
            let capability = Capability::from_str(name).unwrap();
            let spec: LinuxCapabilities = serde_json::from_value(serde_json::json!({
                "bounding": [format!("CAP_{name}")]
            }))
            .unwrap();
            let sets = Sets::of(Some(&spec));
            assert_eq!(sets.bounding, CapabilitySet::from_name(name).unwrap());
            assert_eq!(capability.to_string(), name);
            seen |= sets.bounding;
        }
        assert_eq!(seen.iter().count(), 41);
        assert!(Sets::of(None).bounding.is_empty());
    }
}
