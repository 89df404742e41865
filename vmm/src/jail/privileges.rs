//! Users, capabilities and limits.

use super::{JailError, check};

/// Takes the ids the outer process has mapped: zero in here, the VMM's own outside.
pub(super) fn become_mapped_root() -> Result<(), JailError> {
    // SAFETY: no preconditions.
    let result = unsafe { libc::setresgid(0, 0, 0) };
    check(result, "taking the VMM's group")?;
    // SAFETY: no preconditions.
    let result = unsafe { libc::setresuid(0, 0, 0) };
    check(result, "taking the VMM's user")?;
    Ok(())
}

/// Limits, then no capability in any set, no way to gain one, and no tracing.
pub(super) fn drop_all(max_files: u64) -> Result<(), JailError> {
    limit(libc::RLIMIT_NOFILE, max_files, "limiting descriptors")?;
    limit(libc::RLIMIT_CORE, 0, "forbidding core dumps")?;
    drop_bounding_set()?;
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL,
        "clearing ambient capabilities",
    )?;
    drop_sets()?;
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, "forbidding new privileges")?;
    prctl(libc::PR_SET_DUMPABLE, 0, "forbidding tracing")?;
    // SAFETY: there is one thread, and nothing holds a pointer into the environment.
    let result = unsafe { libc::clearenv() };
    check(result, "clearing the environment")?;
    Ok(())
}

fn limit(what: libc::__rlimit_resource_t, value: u64, attempted: &str) -> Result<(), JailError> {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: a valid pointer.
    let result = unsafe { libc::setrlimit(what, &raw const limit) };
    check(result, attempted).map(|_| ())
}

fn prctl(option: libc::c_int, value: libc::c_int, attempted: &str) -> Result<(), JailError> {
    let value = libc::c_ulong::try_from(value).unwrap_or(0);
    // SAFETY: the options used take a number, and zeros after it.
    check(unsafe { libc::prctl(option, value, 0, 0, 0) }, attempted).map(|_| ())
}

/// The bounding set, up to the last capability this kernel has.
fn drop_bounding_set() -> Result<(), JailError> {
    for cap in 0..64 {
        // SAFETY: takes a number, and zeros after it.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, cap, 0, 0, 0) };
        if known < 0 {
            break;
        }
        prctl(libc::PR_CAPBSET_DROP, cap, "dropping the bounding set")?;
    }
    Ok(())
}

/// Permitted, effective and inheritable.
fn drop_sets() -> Result<(), JailError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words of each set (capget(2)).
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let sets = [[0u32; 3]; 2];
    // SAFETY: both pointers are to structures of the layout this version has.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) };
    check(i32::try_from(result).unwrap_or(-1), "dropping capabilities").map(|_| ())
}
