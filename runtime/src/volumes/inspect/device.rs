//! A device of the node that a container is given: what it is in the pod.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
};

use bulkhead_proto::cri;
use rustix::fs::{FileType, Stat};

use crate::volumes::{
    VolumeError,
    digest::digest,
    plan::{BlockDisk, GuestDevice, Plan, Source},
    snapshot::Ownership,
    validate::{self, Handler},
};

/// Digits of a serial after its letter (virtio 1.2 §5.2.6.1: 20 bytes at most).
const SERIAL_DIGITS: usize = 19;

/// The guest's own node for a device that belongs to no hardware of the node.
pub(super) fn guest_node(stat: &Stat) -> Option<PathBuf> {
    let number = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let name = match number {
        (1, 3) => "null",
        (1, 5) => "zero",
        (1, 7) => "full",
        (1, 8) => "random",
        (1, 9) => "urandom",
        (1, 11) => "kmsg",
        (10, 200) => "net/tun",
        (10, 229) => "fuse",
        _ => return None,
    };
    Some(Path::new("/dev").join(name))
}

pub(super) fn device(
    number: usize,
    given: &cri::Device,
    handler: Handler,
    plan: &mut Plan,
) -> Result<(), VolumeError> {
    let field = |name: &str| format!("devices[{number}].{name}");
    let path = PathBuf::from(&given.host_path);
    let failed = |action| {
        let (field, path) = (field("host_path"), path.clone());
        move |source| VolumeError::Source {
            field,
            action,
            path,
            source,
        }
    };
    let destination = validate::container_path(field("container_path"), &given.container_path)?;
    // Of several at one place the last one is there.
    plan.disks.retain(|disk| disk.destination != destination);
    plan.devices
        .retain(|device| device.destination != destination);
    let covered = plan
        .volumes
        .iter()
        .any(|volume| volume.destination == destination);
    let (source, stat) = Source::open(&path).map_err(failed("open"))?;
    let permissions = given.permissions.clone();
    let ownership = Ownership::from(&stat);
    match FileType::from_raw_mode(stat.st_mode) {
        // A mount covers it: the disk could not be seen.
        FileType::BlockDevice if handler == Handler::Kvm && covered => Ok(()),
        FileType::BlockDevice if handler == Handler::Kvm => {
            let read_only = !permissions.contains('w');
            let file = OpenOptions::new()
                .read(true)
                .write(!read_only)
                .open(format!(
                    "/proc/self/fd/{}",
                    std::os::fd::AsRawFd::as_raw_fd(&*source.fd)
                ))
                .map_err(failed("open"))?;
            let (major, minor) = (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            );
            let name = format!("{major}:{minor} {read_only}");
            plan.disks.push(BlockDisk {
                serial: format!("v{}", digest(name.as_bytes(), SERIAL_DIGITS)),
                file,
                path: source.path,
                read_only,
                destination,
                permissions,
                ownership,
            });
            Ok(())
        }
        FileType::CharacterDevice | FileType::BlockDevice
            if handler == Handler::Host || guest_node(&stat).is_some() =>
        {
            plan.devices.push(GuestDevice {
                destination,
                block: FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice,
                number: (
                    rustix::fs::major(stat.st_rdev),
                    rustix::fs::minor(stat.st_rdev),
                ),
                permissions,
                ownership,
            });
            Ok(())
        }
        FileType::CharacterDevice => Err(VolumeError::Unsupported {
            what: format!("the node's device {}", source.path.display()),
            advice: "a pod is a virtual machine and has its own devices: block devices, null, \
                     zero, full, random, urandom, kmsg, net/tun and fuse can be given to it; run \
                     the pod with the RuntimeClass handler \"host\" for others",
        }),
        _ => Err(VolumeError::Invalid {
            field: field("host_path"),
            value: given.host_path.clone(),
            allowed: "it is not a device",
        }),
    }
}
