//! AppArmor of the guest's kernel: loading the policy a container's profile is in. Putting a
//! process under a profile is the launcher's part.

use std::io::Write;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

/// Where the kernel's security modules show themselves.
const SECURITYFS: &str = "/sys/kernel/security";
/// AppArmor's part of it.
const INTERFACE: &str = "/sys/kernel/security/apparmor";

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// This kernel has no AppArmor, or it is off.
    #[error(
        "the guest's kernel has no AppArmor, so the profile {profile:?} cannot be enforced: run \
         Bulkhead's own guest kernel, without lsm= or apparmor=0 on its command line"
    )]
    Off {
        /// The profile.
        profile: String,
    },
    /// The kernel refused the policy.
    #[error(
        "loading the policy of the AppArmor profile {profile:?} into the guest's kernel {} (was it \
         compiled for a newer one?)",
        crate::apparmor::release()
    )]
    Refused {
        /// The profile.
        profile: String,
        /// The kernel's answer.
        #[source]
        error: std::io::Error,
    },
    /// The policy does not have the profile.
    #[error(
        "neither the kernel nor a policy that was sent has the AppArmor profile {profile:?}; on the \
         host it must be loaded (apparmor_parser)"
    )]
    Absent {
        /// The profile.
        profile: String,
    },
    /// What is loaded cannot be read.
    #[error("reading the AppArmor profiles of the guest's kernel")]
    Read(#[source] std::io::Error),
}

fn release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// Loads a policy, replacing profiles of the same names, and makes sure that it has the profile. An
/// empty policy means that the profile is loaded already.
///
/// # Errors
/// If the kernel cannot enforce the profile.
pub fn load(policy: &[u8], profile: &str) -> Result<(), AppArmorError> {
    let interface = Path::new(INTERFACE);
    if !interface.exists() {
        // Nothing else in a guest needs it; most pods never mount it. A kernel without it shows
        // in the next look.
        let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let _ = mount("securityfs", SECURITYFS, "securityfs", strict, None);
    }
    if !interface.join("profiles").exists() {
        return Err(AppArmorError::Off {
            profile: profile.to_owned(),
        });
    }
    if !policy.is_empty() {
        // The kernel takes a policy in one write.
        let write = std::fs::OpenOptions::new()
            .write(true)
            .open(interface.join(".replace"))
            .and_then(|mut file| file.write_all(policy));
        write.map_err(|error| AppArmorError::Refused {
            profile: profile.to_owned(),
            error,
        })?;
    }
    let loaded =
        std::fs::read_to_string(interface.join("profiles")).map_err(AppArmorError::Read)?;
    if is_listed(&loaded, profile) {
        Ok(())
    } else {
        Err(AppArmorError::Absent {
            profile: profile.to_owned(),
        })
    }
}

/// Lines are `NAME (MODE)`; a name may hold blanks and parentheses.
fn is_listed(list: &str, profile: &str) -> bool {
    list.lines()
        .filter_map(|line| line.rsplit_once(" ("))
        .any(|(name, _)| name == profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_profile_names_match() {
        let list = "a (enforce)\nmy profile (x) (complain)\n/usr/bin/x (enforce)\n";
        for there in ["a", "my profile (x)", "/usr/bin/x"] {
            assert!(is_listed(list, there), "{there}");
        }
        for absent in ["", "my profile", "/usr/bin", "a (enforce)"] {
            assert!(!is_listed(list, absent), "{absent}");
        }
    }
}
