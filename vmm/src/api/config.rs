//! The configuration document.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::{Component, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::devices::fs::MAX_TAG;

/// Guest memory, in MiB: less boots no kernel.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 32..=1024 * 1024;
/// The guest kernel knows 64 CPUs.
const VCPUS: std::ops::RangeInclusive<u8> = 1..=64;
const QUEUES: std::ops::RangeInclusive<u16> = 1..=16;
const QUEUE_SIZE: std::ops::RangeInclusive<u16> = 16..=1024;
const CONSOLE_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;
const MAX_FILES: std::ops::RangeInclusive<u64> = 64..=1 << 20;
const MAX_DISKS: usize = 240;
const MAX_ID: usize = 20;
/// Files of the share the guest may have looked up, or open.
const FS_FILES: std::ops::RangeInclusive<u64> = 16..=1 << 20;
/// Ids the VMM gives to its own devices.
const OWN_IDS: [&str; 5] = ["vsock", "rng", "balloon", "mem", "fs"];

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the document that is wanted.
    #[error("reading the configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of its range.
    #[error("configuration key {key}: {value} is not possible, {allowed} is")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// Two devices have one id, or an id is the VMM's own.
    #[error(
        "configuration: the device id {0} is taken twice (vsock, rng, balloon, mem and fs are the \
         VMM's own)"
    )]
    DuplicateId(String),
    /// One descriptor is named twice.
    #[error("configuration: descriptor {0} is named twice")]
    DuplicateFd(RawFd),
    /// The share is not where the jail keeps it.
    #[error(
        "configuration key fs.share: {} is not possible; with a jail it is one name in jail.root",
        .0.display()
    )]
    BadShare(PathBuf),
    /// A boot without a kernel.
    #[error("configuration: kernel_fd is missing; only a restore does without")]
    NoKernel,
}

/// One VM.
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
    pub control: Option<Control>,
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
pub struct Control {
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

impl FromStr for MacAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = parts
                .next()
                .filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(|| format!("{text:?} is no hardware address (02:00:00:00:00:01)"))?;
        }
        if parts.next().is_some() || bytes.first().is_some_and(|b| b & 1 == 1) {
            return Err(format!("{text:?} is no hardware address of one station"));
        }
        Ok(MacAddress(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(MacAddress([a, b, c, d, e, f]): MacAddress) -> String {
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl Config {
    /// Parses and validates.
    ///
    /// # Errors
    /// What is wrong, with the key.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Config = serde_json::from_slice(json)?;
        config.validate()?;
        Ok(config)
    }

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

    fn validate(&self) -> Result<(), ConfigError> {
        within("vcpus", self.vcpus, &VCPUS)?;
        within("memory_mib", self.memory_mib, &MEMORY_MIB)?;
        within(
            "max_vcpus",
            self.possible_vcpus(),
            &(self.vcpus..=*VCPUS.end()),
        )?;
        let most = self.max_memory_mib.unwrap_or(self.memory_mib);
        within(
            "max_memory_mib",
            most,
            &(self.memory_mib..=*MEMORY_MIB.end()),
        )?;
        within(
            "console.limit_bytes",
            self.console.limit_bytes,
            &CONSOLE_BYTES,
        )?;
        within("disks (their number)", self.disks.len(), &(0..=MAX_DISKS))?;
        within("nets (their number)", self.nets.len(), &(0..=8))?;
        for disk in &self.disks {
            within("disks[].queues", disk.queues, &QUEUES)?;
        }
        for net in &self.nets {
            within("nets[].mtu", net.mtu, &(68..=65_535))?;
            within("nets[].queue_size", net.queue_size, &QUEUE_SIZE)?;
            if !net.queue_size.is_power_of_two() {
                return Err(ConfigError::Range {
                    key: "nets[].queue_size",
                    value: net.queue_size.to_string(),
                    allowed: "a power of two".into(),
                });
            }
        }
        if let Some(vsock) = &self.vsock {
            within("vsock.cid", vsock.cid, &(3..=u64::from(u32::MAX) - 1))?;
        }
        if let Some(fs) = &self.fs {
            within("fs.tag (its bytes)", fs.tag.len(), &(1..=MAX_TAG))?;
            within("fs.max_inodes", fs.max_inodes, &FS_FILES)?;
            within("fs.max_handles", fs.max_handles, &FS_FILES)?;
            let mut parts = fs.share.components();
            let one = matches!(parts.next(), Some(Component::Normal(_)));
            if self.jail.is_some() && !(one && parts.next().is_none()) {
                return Err(ConfigError::BadShare(fs.share.clone()));
            }
        }
        if let Some(jail) = &self.jail {
            within("jail.max_files", jail.max_files, &MAX_FILES)?;
            within("jail.uid", jail.uid, &(1..=u32::MAX - 1))?;
            within("jail.gid", jail.gid, &(1..=u32::MAX - 1))?;
        }
        if self.kernel_fd.is_none() && self.restore_fds.is_none() {
            return Err(ConfigError::NoKernel);
        }
        self.validate_ids()?;
        self.validate_fds()
    }

    fn validate_ids(&self) -> Result<(), ConfigError> {
        let mut seen: BTreeSet<&str> = OWN_IDS.into_iter().collect();
        let ids = self
            .disks
            .iter()
            .map(|d| &d.id)
            .chain(self.nets.iter().map(|n| &n.id));
        for id in ids {
            valid_id(id)?;
            if !seen.insert(id) {
                return Err(ConfigError::DuplicateId(id.clone()));
            }
        }
        Ok(())
    }

    fn validate_fds(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeSet::new();
        for fd in self.fds() {
            within("a descriptor", fd, &(3..=RawFd::MAX))?;
            if !seen.insert(fd) {
                return Err(ConfigError::DuplicateFd(fd));
            }
        }
        Ok(())
    }
}

/// Device ids are serials of virtio-blk: at most 20 bytes, plain characters.
///
/// # Errors
/// When it is not.
pub(super) fn valid_id(id: &str) -> Result<(), ConfigError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=MAX_ID).contains(&id.len()) && id.bytes().all(plain) {
        return Ok(());
    }
    Err(ConfigError::Range {
        key: "a device id",
        value: format!("{id:?}"),
        allowed: "1 to 20 bytes of [A-Za-z0-9._-]".into(),
    })
}

fn within<T: PartialOrd + ToString>(
    key: &'static str,
    value: T,
    range: &std::ops::RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Range {
        key,
        value: value.to_string(),
        allowed: format!(
            "{} to {}",
            range.start().to_string(),
            range.end().to_string()
        ),
    })
}

/// Checks a disk that comes later as those of the configuration are.
pub(super) fn valid_disk(id: &str, queues: u16) -> Result<(), ConfigError> {
    valid_id(id)?;
    if OWN_IDS.contains(&id) {
        return Err(ConfigError::DuplicateId(id.to_owned()));
    }
    within("attach.disk.queues", queues, &QUEUES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> serde_json::Value {
        serde_json::json!({
            "id": "x", "kvm_fd": 6, "kernel_fd": 7, "vcpus": 2, "memory_mib": 256,
            "max_vcpus": 4, "max_memory_mib": 512,
            "disks": [{"id": "scratch", "fd": 9, "read_only": false, "queues": 1}],
            "nets": [{"id": "eth0", "tap_fd": 10, "mac": "02:00:00:00:00:01",
                      "mtu": 1500, "queue_size": 256}],
            "fs": {"tag": "t", "share": "share", "max_inodes": 100, "max_handles": 100},
            "jail": {"uid": 7, "gid": 7, "root": "/x", "max_files": 1024, "log_fd": 2},
            "console": {"path": "console.log", "limit_bytes": 65536},
        })
    }

    fn parse(value: &serde_json::Value) -> Result<Config, ConfigError> {
        Config::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_minimal_document_is_enough() {
        let config = parse(&document()).unwrap();
        assert_eq!(config.fds(), [6, 7, 9, 10]);
        assert!(!config.hold && config.vsock.is_none());
    }

    #[test]
    fn impossible_values_are_refused_with_their_key() {
        for (pointer, value, key) in [
            ("/vcpus", serde_json::json!(0), "vcpus"),
            ("/vcpus", serde_json::json!(65), "vcpus"),
            ("/memory_mib", serde_json::json!(1), "memory_mib"),
            ("/max_vcpus", serde_json::json!(1), "max_vcpus"),
            ("/max_memory_mib", serde_json::json!(255), "max_memory_mib"),
            ("/disks/0/id", serde_json::json!("a b"), "device id"),
            ("/disks/0/id", serde_json::json!(""), "device id"),
            (
                "/disks/0/id",
                serde_json::json!("123456789012345678901"),
                "device id",
            ),
            ("/disks/0/id", serde_json::json!("vsock"), "vsock"),
            ("/disks/0/id", serde_json::json!("eth0"), "eth0"),
            ("/disks/0/queues", serde_json::json!(0), "queues"),
            ("/disks/0/fd", serde_json::json!(10), "descriptor 10"),
            ("/disks/0/fd", serde_json::json!(2), "descriptor"),
            (
                "/nets/0/mac",
                serde_json::json!("02:00:00:00:00"),
                "hardware address",
            ),
            (
                "/nets/0/mac",
                serde_json::json!("03:00:00:00:00:01"),
                "hardware address",
            ),
            ("/nets/0/queue_size", serde_json::json!(100), "queue_size"),
            ("/kernel_fd", serde_json::json!(null), "kernel_fd"),
            ("/fs/tag", serde_json::json!(""), "fs.tag"),
            ("/fs/tag", serde_json::json!("x".repeat(37)), "fs.tag"),
            ("/fs/max_inodes", serde_json::json!(0), "fs.max_inodes"),
            ("/fs/share", serde_json::json!("../x"), "fs.share"),
            ("/fs/share", serde_json::json!("/share"), "fs.share"),
            ("/fs/share", serde_json::json!("a/b"), "fs.share"),
        ] {
            let mut changed = document();
            *changed.pointer_mut(pointer).unwrap() = value;
            let error = parse(&changed).unwrap_err().to_string();
            assert!(error.contains(key), "{pointer}: {error}");
        }
        let mut unknown = document();
        unknown["surprise"] = 1.into();
        assert!(
            parse(&unknown)
                .unwrap_err()
                .to_string()
                .contains("surprise")
        );
    }

    #[test]
    fn addresses_are_written_as_they_are_read() {
        let mac: MacAddress = "02:aB:00:00:00:ff".parse().unwrap();
        assert_eq!(String::from(mac), "02:ab:00:00:00:ff");
    }
}
