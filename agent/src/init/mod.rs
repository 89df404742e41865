//! What only PID 1 of a guest does: make the root, mount the kernel's file systems, delegate the
//! cgroup controllers, set limits and kernel parameters, and at the end switch the machine off. On a host
//! nothing here runs but [`steps`] and [`loopback`].

pub mod entropy;
pub mod error;
pub mod file_systems;
pub mod loopback;
pub mod parameters;
pub mod power;
pub mod steps;

use std::fs;
use std::path::Path;

use rustix::process::{Resource, Rlimit};

pub use self::error::InitError;
use crate::paths::CGROUP_PARENT;

/// Brings the guest up, before the agent has threads.
///
/// # Errors
/// The first step that fails; a guest without it would fail later and less clearly.
pub fn bring_up() -> Result<(), InitError> {
    file_systems::replace_root()?;
    steps::done("root");
    file_systems::mount_all()?;
    steps::done("mounts");
    delegate_controllers(Path::new("/sys/fs/cgroup"))?;
    steps::done("cgroups");
    raise_limits();
    // Ctrl-Alt-Delete sends SIGINT instead of rebooting at once.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    steps::done("limits");
    loopback::up().map_err(InitError::Loopback)?;
    steps::done("loopback");
    Ok(())
}

/// Enables every controller for the containers' cgroups.
///
/// # Errors
/// If the hierarchy is not writable.
pub fn delegate_controllers(root: &Path) -> Result<(), InitError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |error| InitError::Cgroup { path, error }
    };
    let list = root.join("cgroup.controllers");
    let controllers = fs::read_to_string(&list).map_err(error(&list))?;
    let enable: Vec<_> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    let enable = enable.join(" ");
    let parent = root.join(CGROUP_PARENT);
    match fs::create_dir(&parent) {
        Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error(&parent)(cause));
        }
        _ => {}
    }
    for directory in [root, &parent] {
        let control = directory.join("cgroup.subtree_control");
        fs::write(&control, &enable).map_err(error(&control))?;
    }
    Ok(())
}

/// The limits containers start from, unless their spec says otherwise: the kernel gives PID 1 1024
/// descriptors, which is too few for many images' services.
fn raise_limits() {
    const FILES: u64 = 1 << 20;
    let _ = fs::write("/proc/sys/fs/nr_open", FILES.to_string());
    let set = |resource, limit: Option<u64>| {
        // Not fatal: a container that needs more says so in its spec, and fails there.
        let _ = rustix::process::setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        );
    };
    set(Resource::Nofile, Some(FILES));
    // Also timers count against it (timer_create(2)); the kernel's own comes from the memory it boots with.
    set(Resource::Sigpending, Some(1 << 17));
    set(Resource::Nproc, None);
    set(Resource::Core, None);
}
