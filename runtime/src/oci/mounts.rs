//! The mounts and devices every container gets.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, Mount, MountBuilder};

use super::OciError;

/// Where the agent keeps the files all containers of the pod share (see the agent's API).
const SHARED: &str = "/run/bulkhead/sandbox";

/// The kernel's file systems, in the order they go on top of each other, and the pod's own files.
pub fn default(privileged: bool, readonly_rootfs: bool) -> Result<Vec<Mount>, OciError> {
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
/// open by name. The guest has no modules, so the list is complete but for disks.
pub fn devices(privileged: bool) -> Result<Vec<LinuxDevice>, OciError> {
    if !privileged {
        return Ok(Vec::new());
    }
    let mut result = vec![
        device("/dev/kmsg", LinuxDeviceType::C, 1, 11, 0o644)?,
        device("/dev/fuse", LinuxDeviceType::C, 10, 229, 0o666)?,
        device("/dev/net/tun", LinuxDeviceType::C, 10, 200, 0o666)?,
        device("/dev/loop-control", LinuxDeviceType::C, 10, 237, 0o660)?,
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
