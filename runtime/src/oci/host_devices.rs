//! The host's device nodes, for privileged containers on the handler `host`.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, Mount};

use super::{OciError, Plan};

/// What every container has, or has of its own.
const OWN: [&str; 13] = [
    "null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "pts", "shm", "fd",
    "mqueue", "core",
];
/// Below /dev there are directories of directories (disk/by-id), of links for the most part.
const DEPTH: usize = 4;

/// Gives a plan every device of the host, beside those it has under names the host does not use;
/// none if the pod has mounted a /dev. Blocks: walks /dev.
pub fn give_all(plan: &mut Plan) -> Result<(), OciError> {
    let mut mounts = plan.spec.mounts().iter().flatten();
    let mounted = |mount: &Mount| mount.destination() == Path::new("/dev");
    // The host's own /dev is there, or whatever else the pod wants there.
    if mounts.any(|mount| mounted(mount) && mount.typ().as_deref() == Some("bind")) {
        return Ok(());
    }
    let mut devices = Vec::new();
    walk(Path::new("/dev"), DEPTH, &mut devices)?;
    let mut linux = plan.spec.linux().clone().unwrap_or_default();
    let mut own = linux.devices().clone().unwrap_or_default();
    own.retain(|one| devices.iter().all(|other| other.path() != one.path()));
    devices.extend(own);
    linux.set_devices(Some(devices));
    plan.spec.set_linux(Some(linux));
    Ok(())
}

fn walk(dir: &Path, depth: usize, devices: &mut Vec<LinuxDevice>) -> Result<(), OciError> {
    // Devices come and go while we look.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let (Some(name), Ok(meta)) = (name.to_str(), fs::symlink_metadata(&path)) else {
            continue;
        };
        if name.starts_with('.') || (dir == Path::new("/dev") && OWN.contains(&name)) {
            continue;
        }
        let kind = meta.file_type();
        if kind.is_dir() && depth > 1 {
            walk(&path, depth - 1, devices)?;
        }
        if !kind.is_char_device() && !kind.is_block_device() {
            continue;
        }
        let typ = match kind.is_block_device() {
            true => LinuxDeviceType::B,
            false => LinuxDeviceType::C,
        };
        devices.push(
            LinuxDeviceBuilder::default()
                .path(path)
                .typ(typ)
                .major(i64::from(rustix::fs::major(meta.rdev())))
                .minor(i64::from(rustix::fs::minor(meta.rdev())))
                .file_mode(meta.mode() & 0o7777)
                .uid(meta.uid())
                .gid(meta.gid())
                .build()?,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_nodes_that_a_container_has_not_by_itself() {
        let mut devices = Vec::new();
        walk(Path::new("/dev"), DEPTH, &mut devices).unwrap();
        for device in devices {
            let name = device.path().strip_prefix("/dev").unwrap();
            assert!(!OWN.iter().any(|own| name.starts_with(own)), "{name:?}");
            assert!(!fs::symlink_metadata(device.path()).unwrap().is_symlink());
        }
    }
}
