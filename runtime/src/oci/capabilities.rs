//! Which capabilities a container gets: the usual default set, changed as CRI asks.

use std::collections::HashSet;

use bulkhead_proto::cri;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};

use super::OciError;

/// What an unprivileged container has, in the guest: enough for package managers, servers on low
/// ports and daemons that drop their own rights; nothing that touches the kernel.
const DEFAULT: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// All that Linux 6.12 has (capability.h: 0 to CAP_LAST_CAP, 40).
const ALL: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// What a container may do and what it starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Bounding, permitted and effective.
    pub base: HashSet<Capability>,
    /// Inheritable and ambient too: kept over an exec by a user that is not root.
    pub ambient: HashSet<Capability>,
}

impl Granted {
    /// Decides from CRI: `ALL` first (add, then drop), then single names, drops last, so that
    /// `drop: [ALL], add: [X]` leaves X.
    pub fn decide(asked: Option<&cri::Capability>, privileged: bool) -> Result<Self, OciError> {
        let empty = cri::Capability::default();
        let asked = asked.unwrap_or(&empty);
        let add = names(&asked.add_capabilities, "add_capabilities")?;
        let drop = names(&asked.drop_capabilities, "drop_capabilities")?;
        let ambient = names(&asked.add_ambient_capabilities, "add_ambient_capabilities")?;
        if privileged {
            let ambient = if ambient.all {
                ALL.into()
            } else {
                ambient.single
            };
            return Ok(Self {
                base: ALL.into(),
                ambient,
            });
        }
        let mut base: HashSet<Capability> = if add.all || ambient.all {
            ALL.into()
        } else {
            DEFAULT.into()
        };
        if drop.all {
            base.clear();
        }
        base.extend(&add.single);
        base.extend(&ambient.single);
        base.retain(|cap| !drop.single.contains(cap));
        let mut keep: HashSet<Capability> = if ambient.all {
            ALL.into()
        } else {
            ambient.single
        };
        keep.retain(|cap| base.contains(cap));
        Ok(Self {
            base,
            ambient: keep,
        })
    }

    /// As the OCI spec has it. Inheritable is only what is ambient: a wider set would let a file
    /// with inheritable bits raise rights on exec.
    pub fn to_oci(&self) -> Result<LinuxCapabilities, OciError> {
        let set = |caps: &HashSet<Capability>| caps.iter().copied().collect::<Capabilities>();
        Ok(LinuxCapabilitiesBuilder::default()
            .bounding(set(&self.base))
            .permitted(set(&self.base))
            .effective(set(&self.base))
            .inheritable(set(&self.ambient))
            .ambient(set(&self.ambient))
            .build()?)
    }
}

struct Names {
    all: bool,
    single: HashSet<Capability>,
}

fn names(list: &[String], field: &'static str) -> Result<Names, OciError> {
    let mut result = Names {
        all: false,
        single: HashSet::new(),
    };
    for name in list {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            result.all = true;
            continue;
        }
        let cap = ALL
            .iter()
            .copied()
            .find(|cap| spelled(*cap) == bare)
            .ok_or_else(|| OciError::Invalid {
                field,
                value: name.clone(),
                allowed: "ALL, or a Linux capability with or without CAP_, such as NET_ADMIN",
            })?;
        result.single.insert(cap);
    }
    Ok(result)
}

/// The name without `CAP_`, as in capabilities(7).
pub fn spelled(cap: Capability) -> String {
    let text = cap.to_string();
    text.strip_prefix("CAP_").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(add: &[&str], drop: &[&str], ambient: &[&str]) -> Granted {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let asked = cri::Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            add_ambient_capabilities: own(ambient),
        };
        Granted::decide(Some(&asked), false).unwrap()
    }

    #[test]
    fn all_is_all() {
        let distinct: HashSet<_> = ALL.iter().map(|cap| spelled(*cap)).collect();
        assert_eq!(distinct.len(), 41);
        assert!(distinct.contains("SYS_ADMIN") && distinct.contains("CHECKPOINT_RESTORE"));
        assert!(distinct.contains("SYSLOG") && distinct.contains("DAC_READ_SEARCH"));
    }

    #[test]
    fn defaults_add_and_drop() {
        let default = Granted::decide(None, false).unwrap();
        assert_eq!(default.base, DEFAULT.into());
        assert!(default.ambient.is_empty());
        assert!(
            decide(&["NET_ADMIN"], &[], &[])
                .base
                .contains(&Capability::NetAdmin)
        );
        assert!(
            decide(&["cap_net_admin"], &[], &[])
                .base
                .contains(&Capability::NetAdmin)
        );
        assert!(
            !decide(&[], &["CHOWN"], &[])
                .base
                .contains(&Capability::Chown)
        );
        assert_eq!(decide(&["ALL"], &[], &[]).base.len(), 41);
        assert!(decide(&[], &["ALL"], &[]).base.is_empty());
        assert_eq!(
            decide(&["KILL"], &["ALL"], &[]).base,
            HashSet::from([Capability::Kill])
        );
        assert_eq!(decide(&["ALL"], &["SYS_ADMIN"], &[]).base.len(), 40);
    }

    #[test]
    fn ambient_is_in_the_base_unless_dropped() {
        let with = decide(&[], &[], &["SYS_NICE"]);
        assert!(with.base.contains(&Capability::SysNice));
        assert_eq!(with.ambient, HashSet::from([Capability::SysNice]));
        assert!(decide(&[], &["SYS_NICE"], &["SYS_NICE"]).ambient.is_empty());
    }

    #[test]
    fn privileged_has_everything_whatever_is_dropped() {
        let asked = cri::Capability {
            drop_capabilities: vec!["ALL".into()],
            ..Default::default()
        };
        assert_eq!(Granted::decide(Some(&asked), true).unwrap().base.len(), 41);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let asked = cri::Capability {
            add_capabilities: vec!["FLY".into()],
            ..Default::default()
        };
        let error = Granted::decide(Some(&asked), false).unwrap_err();
        assert!(error.to_string().contains("FLY"), "{error}");
    }
}
