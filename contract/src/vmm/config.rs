//! The configuration document.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most virtual CPUs: the guest's kernel knows no more (`CONFIG_NR_CPUS`).
pub const MAX_VCPUS: u8 = 64;
/// The most guest memory, in MiB.
pub const MAX_MEMORY_MIB: u64 = 1 << 20;
/// What the name of a share's entry ends in whose files the guest itself keeps every container from
/// writing. Such a file may be one with the same file in an entry that is written.
pub const SEALED_SUFFIX: &str = "-sealed";

/// One VM. Descriptor numbers are those in the VMM's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For messages.
    pub id: String,
    /// What is given up before the guest runs; nothing when null.
    #[serde(default)]
    pub jail: Option<Jail>,
    /// /dev/kvm.
    pub kvm_fd: RawFd,
    /// The kernel's ELF file.
    #[serde(default)]
    pub kernel_fd: Option<RawFd>,
    /// The initramfs.
    #[serde(default)]
    pub initramfs_fd: Option<RawFd>,
    /// Appended to the VMM's own command line.
    #[serde(default)]
    pub cmdline: String,
    /// How many vCPUs.
    pub vcpus: u8,
    /// How many there can be after a resize; as many as `vcpus` when null.
    #[serde(default)]
    pub max_vcpus: Option<u8>,
    /// Guest RAM.
    pub memory_mib: u64,
    /// How much there can be after a resize; as much as `memory_mib` when null.
    #[serde(default)]
    pub max_memory_mib: Option<u64>,
    /// Disks there from the start.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network devices.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// The vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// The directory of the host that the guest gets by virtio-fs.
    #[serde(default)]
    pub fs: Option<Fs>,
    /// Where the serial console goes.
    pub console: Console,
    /// The control socket.
    #[serde(default)]
    pub control: Option<ControlSocket>,
    /// A snapshot to continue.
    #[serde(default)]
    pub restore_fds: Option<RestoreFds>,
    /// The vCPUs wait for `boot`.
    #[serde(default)]
    pub hold: bool,
}

/// What is given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jail {
    /// The host's user id of the VMM.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// The only directory it sees.
    pub root: PathBuf,
    /// `cgroup.procs` of the cgroups to join.
    #[serde(default)]
    pub cgroup_procs_fds: Vec<RawFd>,
    /// RLIMIT_NOFILE.
    pub max_files: u64,
    /// Where log lines go.
    pub log_fd: RawFd,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its serial.
    pub id: String,
    /// The file.
    pub fd: RawFd,
    /// Refuse writes.
    pub read_only: bool,
    /// How many queues.
    pub queues: u16,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Its name, for messages and snapshots.
    pub id: String,
    /// The tap.
    pub tap_fd: RawFd,
    /// /dev/vhost-net, or null.
    #[serde(default)]
    pub vhost_fd: Option<RawFd>,
    /// The address.
    pub mac: MacAddress,
    /// The greatest packet.
    pub mtu: u16,
    /// Entries of each queue.
    pub queue_size: u16,
}

/// A hardware address, written `02:00:00:00:00:01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// The vsock device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's address.
    pub cid: u64,
    /// The Unix socket.
    pub path: PathBuf,
}

/// The file server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fs {
    /// The name the guest mounts it by.
    pub tag: String,
    /// The directory: with a jail, one name in its root, and a mount of its own.
    pub share: PathBuf,
    /// The most files the guest may have looked up.
    pub max_inodes: u64,
    /// The most files it may have open.
    pub max_handles: u64,
}

/// The serial console's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// The file.
    pub path: PathBuf,
    /// The most it may take, its predecessor included.
    pub limit_bytes: u64,
}

/// The control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSocket {
    /// The Unix socket.
    pub path: PathBuf,
}

/// The files of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreFds {
    /// The state file.
    pub state: RawFd,
    /// The memory file.
    pub memory: RawFd,
}

impl Config {
    /// Every descriptor the document names, but for the log's.
    #[must_use]
    pub fn fds(&self) -> Vec<RawFd> {
        let mut fds = vec![self.kvm_fd];
        fds.extend(self.kernel_fd);
        fds.extend(self.initramfs_fd);
        fds.extend(self.disks.iter().map(|d| d.fd));
        for net in &self.nets {
            fds.push(net.tap_fd);
            fds.extend(net.vhost_fd);
        }
        fds.extend(self.restore_fds.iter().flat_map(|r| [r.state, r.memory]));
        fds.extend(
            self.jail
                .iter()
                .flat_map(|j| j.cgroup_procs_fds.iter().copied()),
        );
        fds
    }

    /// How many vCPUs the guest may have in the end.
    #[must_use]
    pub fn possible_vcpus(&self) -> u8 {
        self.max_vcpus.unwrap_or(self.vcpus)
    }
}

/// A text that is no hardware address of a station.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadMacAddress(String);

impl fmt::Display for BadMacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not the hardware address of one station (02:00:00:00:00:01)",
            self.0
        )
    }
}

impl std::error::Error for BadMacAddress {}

impl FromStr for MacAddress {
    type Err = BadMacAddress;
    fn from_str(text: &str) -> Result<Self, BadMacAddress> {
        let bad = || BadMacAddress(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(bad)?;
        }
        // The lowest bit of the first byte says that it is a group's.
        if parts.next().is_some() || bytes.first().is_some_and(|b| b & 1 == 1) {
            return Err(bad());
        }
        Ok(MacAddress(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = BadMacAddress;
    fn try_from(text: String) -> Result<Self, BadMacAddress> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(MacAddress([a, b, c, d, e, f]): MacAddress) -> String {
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        let mac: MacAddress = "02:aB:00:00:00:ff".parse().unwrap();
        assert_eq!(String::from(mac), "02:ab:00:00:00:ff");
        for bad in [
            "",
            "02:00:00:00:00",
            "03:00:00:00:00:01",
            "02:00:00:00:00:01:02",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
