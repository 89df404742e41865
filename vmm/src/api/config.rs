//! Whether a configuration makes sense. The document itself is the contract's.

use std::collections::BTreeSet;
use std::os::fd::RawFd;
use std::path::{Component, PathBuf};

use bulkhead_contract::vmm::{
    AttachDisk, AttachNet, Config, MAX_MEMORY_MIB, MAX_PARTS, MAX_VCPUS, PART_ALIGNMENT,
};

use crate::devices::fs::MAX_TAG;

/// Guest memory, in MiB: less boots no kernel.
const MEMORY_MIB: std::ops::RangeInclusive<u64> = 32..=MAX_MEMORY_MIB;
const VCPUS: std::ops::RangeInclusive<u8> = 1..=MAX_VCPUS;
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
    /// The document is malformed.
    #[error("reading the configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// A value is out of its range.
    #[error("configuration key {key}: {value} is invalid; allowed: {allowed}")]
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
        "configuration key fs.share: {} is invalid; with a jail it must be one name in jail.root",
        .0.display()
    )]
    BadShare(PathBuf),
    /// A boot without a kernel.
    #[error("configuration: kernel_fd is missing; only a restore needs none")]
    NoKernel,
}

/// Parses a configuration and validates it.
///
/// # Errors
/// What is wrong, with the key.
pub fn parse(json: &[u8]) -> Result<Config, ConfigError> {
    let config: Config = serde_json::from_slice(json)?;
    validate(&config)?;
    Ok(config)
}

fn validate(config: &Config) -> Result<(), ConfigError> {
    within("vcpus", config.vcpus, &VCPUS)?;
    within("memory_mib", config.memory_mib, &MEMORY_MIB)?;
    within(
        "max_vcpus",
        config.possible_vcpus(),
        &(config.vcpus..=*VCPUS.end()),
    )?;
    let most = config.max_memory_mib.unwrap_or(config.memory_mib);
    within(
        "max_memory_mib",
        most,
        &(config.memory_mib..=*MEMORY_MIB.end()),
    )?;
    within(
        "console.limit_bytes",
        config.console.limit_bytes,
        &CONSOLE_BYTES,
    )?;
    within("disks (their number)", config.disks.len(), &(0..=MAX_DISKS))?;
    within("nets (their number)", config.nets.len(), &(0..=8))?;
    for disk in &config.disks {
        within("disks[].queues", disk.queues, &QUEUES)?;
    }
    for net in &config.nets {
        valid_net(net.mtu, net.queue_size)?;
    }
    if let Some(vsock) = &config.vsock {
        within("vsock.cid", vsock.cid, &(3..=u64::from(u32::MAX) - 1))?;
    }
    if let Some(fs) = &config.fs {
        within("fs.tag (its bytes)", fs.tag.len(), &(1..=MAX_TAG))?;
        within("fs.max_inodes", fs.max_inodes, &FS_FILES)?;
        within("fs.max_handles", fs.max_handles, &FS_FILES)?;
        let mut parts = fs.share.components();
        let one = matches!(parts.next(), Some(Component::Normal(_)));
        if config.jail.is_some() && !(one && parts.next().is_none()) {
            return Err(ConfigError::BadShare(fs.share.clone()));
        }
    }
    if let Some(jail) = &config.jail {
        within("jail.max_files", jail.max_files, &MAX_FILES)?;
        within("jail.uid", jail.uid, &(1..=u32::MAX - 1))?;
        within("jail.gid", jail.gid, &(1..=u32::MAX - 1))?;
    }
    if config.kernel_fd.is_none() && config.restore_fds.is_none() {
        return Err(ConfigError::NoKernel);
    }
    validate_ids(config)?;
    validate_fds(config)
}

fn validate_ids(config: &Config) -> Result<(), ConfigError> {
    let mut seen: BTreeSet<&str> = OWN_IDS.into_iter().collect();
    let ids = config
        .disks
        .iter()
        .map(|d| &d.id)
        .chain(config.nets.iter().map(|n| &n.id));
    for id in ids {
        valid_id(id)?;
        if !seen.insert(id) {
            return Err(ConfigError::DuplicateId(id.clone()));
        }
    }
    Ok(())
}

fn validate_fds(config: &Config) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for fd in config.fds() {
        within("a descriptor", fd, &(3..=RawFd::MAX))?;
        if !seen.insert(fd) {
            return Err(ConfigError::DuplicateFd(fd));
        }
    }
    Ok(())
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

fn valid_net(mtu: u16, queue_size: u16) -> Result<(), ConfigError> {
    within("nets[].mtu", mtu, &(68..=65_535))?;
    within("nets[].queue_size", queue_size, &QUEUE_SIZE)?;
    if queue_size.is_power_of_two() {
        return Ok(());
    }
    Err(ConfigError::Range {
        key: "nets[].queue_size",
        value: queue_size.to_string(),
        allowed: "a power of two".into(),
    })
}

/// Checks a disk that comes later as those of the configuration are.
pub(super) fn valid_disk(disk: &AttachDisk) -> Result<(), ConfigError> {
    valid_new_id(&disk.id)?;
    within("attach.disk.queues", disk.queues, &QUEUES)?;
    let count = disk.parts.len();
    within("attach.disk.parts (their number)", count, &(0..=MAX_PARTS))?;
    let whole = |bytes: &u64| *bytes > 0 && bytes.is_multiple_of(PART_ALIGNMENT);
    if let Some(bytes) = disk.parts.iter().find(|bytes| !whole(bytes)) {
        return Err(ConfigError::Range {
            key: "attach.disk.parts",
            value: bytes.to_string(),
            allowed: format!("multiples of {PART_ALIGNMENT}"),
        });
    }
    if count > 0 && !disk.read_only {
        return Err(ConfigError::Range {
            key: "attach.disk.read_only",
            value: false.to_string(),
            allowed: "true for a disk of parts".into(),
        });
    }
    Ok(())
}

/// Checks a network device that comes later as those of the configuration are.
pub(super) fn valid_later_net(net: &AttachNet) -> Result<(), ConfigError> {
    valid_new_id(&net.id)?;
    valid_net(net.mtu, net.queue_size)
}

fn valid_new_id(id: &str) -> Result<(), ConfigError> {
    valid_id(id)?;
    if OWN_IDS.contains(&id) {
        return Err(ConfigError::DuplicateId(id.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Config, ConfigError};

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
        super::parse(value.to_string().as_bytes())
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
}
