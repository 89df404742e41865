//! Users, capabilities and limits.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{clear_ambient_capability_set, set_no_new_privs};

use super::error::{Attempted, JailError, check};

/// What a file server needs to make files for others and keep their owners: it may change owners
/// and modes, pass permissions (the guest's kernel has checked them), keep set-group-id bits, and
/// be any user while it makes a file. It may open no file by a handle, and make no device.
const FILE_CAPABILITIES: u64 =
    1 << CHOWN | 1 << DAC_OVERRIDE | 1 << FOWNER | 1 << FSETID | 1 << SETGID | 1 << SETUID;
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const SETGID: u32 = 6;
const SETUID: u32 = 7;

/// From here on a change of user changes no capabilities, and being root gives none
/// (SECBIT_NOROOT, SECBIT_NO_SETUID_FIXUP, SECBIT_NO_CAP_AMBIENT_RAISE, each locked). Concerns this
/// thread and those it starts.
///
/// # Errors
/// For one without CAP_SETPCAP.
pub fn keep_capabilities() -> Result<(), JailError> {
    let bits = 0b11 | 0b11 << 2 | 0b11 << 6;
    prctl(libc::PR_SET_SECUREBITS, bits, "setting secure bits")
}

/// Takes these ids for good.
pub(super) fn become_user(uid: u32, gid: u32) -> Result<(), JailError> {
    // SAFETY: no preconditions.
    let result = unsafe { libc::setresgid(gid, gid, gid) };
    check(result, "taking the VMM's group")?;
    // SAFETY: no preconditions.
    let result = unsafe { libc::setresuid(uid, uid, uid) };
    check(result, "taking the VMM's user")?;
    Ok(())
}

/// No capability in any set, no way to gain one, and no tracing. For a file server, this thread
/// may still pass on what that needs, but use it no more.
pub(super) fn drop_all(file_server: bool) -> Result<(), JailError> {
    limit(Resource::Core, 0, "forbidding core dumps")?;
    drop_bounding_set()?;
    clear_ambient_capability_set().or_failed("clearing ambient capabilities")?;
    let kept = if file_server { FILE_CAPABILITIES } else { 0 };
    set_capabilities(kept, 0, "dropping capabilities")?;
    set_no_new_privs(true).or_failed("forbidding new privileges")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).or_failed("forbidding tracing")?;
    // SAFETY: there is one thread, and nothing holds a pointer into the environment.
    let result = unsafe { libc::clearenv() };
    check(result, "clearing the environment")?;
    Ok(())
}

/// Gives this thread the capabilities of a file server.
///
/// # Errors
/// When the thread that started it has none to pass on.
pub fn raise_file_capabilities() -> Result<(), JailError> {
    let all = FILE_CAPABILITIES;
    set_capabilities(all, all, "taking the file server's capabilities")
}

/// Takes every capability from this thread, and so from those it starts.
///
/// # Errors
/// Never, on a kernel that has capabilities.
pub fn drop_capabilities() -> Result<(), JailError> {
    set_capabilities(0, 0, "dropping capabilities")
}

pub(super) fn limit(what: Resource, value: u64, attempted: &str) -> Result<(), JailError> {
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(what, limit).or_failed(attempted)
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

/// Sets this thread's capabilities; none is inheritable.
fn set_capabilities(permitted: u64, effective: u64, attempted: &str) -> Result<(), JailError> {
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
    let word = |set: u64, shift: u32| u32::try_from(set >> shift & 0xffff_ffff).unwrap_or(0);
    let sets = [0, 32].map(|shift| [word(effective, shift), word(permitted, shift), 0]);
    // SAFETY: both pointers are to structures of the layout this version has.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) };
    check(i32::try_from(result).unwrap_or(-1), attempted).map(|_| ())
}
