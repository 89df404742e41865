//! The mounts and devices of a container: those every one gets, and its volumes.

use std::path::Path;

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
    Mount, MountBuilder,
};

use super::OciError;
use crate::volumes::{GuestDevice, Kind, Plan};

/// Where the agent keeps the files all containers of the pod share (see the agent's API).
const SHARED: &str = "/run/bulkhead/sandbox";

/// The source of mounts for which the agent has one: it puts it in.
const BY_THE_AGENT: &str = "bulkhead";

/// All mounts, each after those it lies in. A volume at the place of a default mount takes it, and
/// one at /dev takes what is below too.
pub fn all(privileged: bool, readonly_rootfs: bool, plan: &Plan) -> Result<Vec<Mount>, OciError> {
    let volumes = &plan.volumes;
    let mut mounts = default(privileged, readonly_rootfs)?;
    mounts.retain(|mount| !is_covered(plan, mount.destination()));
    for volume in volumes {
        let source = match &volume.kind {
            Kind::GuestNode(path) => path.as_path(),
            _ => Path::new(BY_THE_AGENT),
        };
        mounts.push(
            MountBuilder::default()
                .destination(&volume.destination)
                .typ("bind")
                .source(source)
                .options(volume.options.clone())
                .build()?,
        );
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

/// Whether a volume is at the place, or is a /dev with what is in it.
fn is_covered(plan: &Plan, at: &Path) -> bool {
    plan.volumes.iter().any(|volume| {
        volume.destination == at
            || (volume.destination == Path::new("/dev") && at.starts_with("/dev"))
    })
}

/// What a container may do with the devices it is given.
pub fn device_rules(plan: &Plan) -> Result<Vec<LinuxDeviceCgroup>, OciError> {
    plan.devices
        .iter()
        .map(|device| {
            Ok(LinuxDeviceCgroupBuilder::default()
                .allow(true)
                .typ(kind(device))
                .major(i64::from(device.number.0))
                .minor(i64::from(device.number.1))
                .access(device.permissions.clone())
                .build()?)
        })
        .collect()
}

/// The kernel's file systems, in the order they go on top of each other, and the pod's own files.
fn default(privileged: bool, readonly_rootfs: bool) -> Result<Vec<Mount>, OciError> {
    let kernel = if privileged { "rw" } else { "ro" };
    let etc = if readonly_rootfs { "ro" } else { "rw" };
    let mut mounts = vec![
        plain("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        plain(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        plain(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        plain("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        plain("/sys", "sysfs", &["nosuid", "noexec", "nodev", kernel])?,
        plain(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", kernel],
        )?,
        shared("/dev/shm", "shm", "rw")?,
    ];
    for file in ["hostname", "hosts", "resolv.conf"] {
        mounts.push(shared(&format!("/etc/{file}"), file, etc)?);
    }
    Ok(mounts)
}

fn plain(at: &str, kind: &str, options: &[&str]) -> Result<Mount, OciError> {
    Ok(MountBuilder::default()
        .destination(at)
        .typ(kind)
        .source(kind)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()?)
}

fn shared(at: &str, name: &str, mode: &str) -> Result<Mount, OciError> {
    Ok(MountBuilder::default()
        .destination(at)
        .typ("bind")
        .source(format!("{SHARED}/{name}"))
        .options(["rbind", "rprivate", mode].map(str::to_owned).to_vec())
        .build()?)
}

/// Device nodes beyond the standard ones (null, zero, full, random, urandom, tty, ptmx, which
/// every OCI runtime makes): for a privileged container those of the guest's kernel that programs
/// open by path. The guest has no modules, so the list is complete but for disks. Where a volume is,
/// no node is made: a node's /dev that is mounted at /dev has its own, and stays as it is.
pub fn devices(privileged: bool, plan: &Plan) -> Result<Vec<LinuxDevice>, OciError> {
    let mut result = own_devices(privileged)?;
    for given in &plan.devices {
        result.retain(|device| *device.path() != given.destination);
        let (major, minor) = given.number;
        let mut node = LinuxDeviceBuilder::default()
            .path(&given.destination)
            .typ(kind(given))
            .major(i64::from(major))
            .minor(i64::from(minor))
            .file_mode(given.ownership.mode)
            .build()?;
        node.set_uid(Some(given.ownership.uid));
        node.set_gid(Some(given.ownership.gid));
        result.push(node);
    }
    result.retain(|device| !is_covered(plan, device.path()));
    Ok(result)
}

fn kind(device: &GuestDevice) -> LinuxDeviceType {
    match device.block {
        true => LinuxDeviceType::B,
        false => LinuxDeviceType::C,
    }
}

fn own_devices(privileged: bool) -> Result<Vec<LinuxDevice>, OciError> {
    if !privileged {
        return Ok(Vec::new());
    }
    let mut result = vec![
        device("/dev/kmsg", LinuxDeviceType::C, 1, 11, 0o644)?,
        device("/dev/fuse", LinuxDeviceType::C, 10, 229, 0o666)?,
        device("/dev/net/tun", LinuxDeviceType::C, 10, 200, 0o666)?,
        device("/dev/loop-control", LinuxDeviceType::C, 10, 237, 0o660)?,
        // cryptsetup and dmsetup, which make the nodes of their devices beside it; mkfs.btrfs and mount.
        device("/dev/mapper/control", LinuxDeviceType::C, 10, 236, 0o600)?,
        device("/dev/btrfs-control", LinuxDeviceType::C, 10, 234, 0o660)?,
    ];
    for nth in 0..8 {
        result.push(device(
            &format!("/dev/loop{nth}"),
            LinuxDeviceType::B,
            7,
            nth,
            0o660,
        )?);
    }
    Ok(result)
}

fn device(
    path: &str,
    kind: LinuxDeviceType,
    major: i64,
    minor: i64,
    mode: u32,
) -> Result<LinuxDevice, OciError> {
    Ok(LinuxDeviceBuilder::default()
        .path(path)
        .typ(kind)
        .major(major)
        .minor(minor)
        .file_mode(mode)
        .uid(0u32)
        .gid(0u32)
        .build()?)
}
