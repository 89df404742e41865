//! From "the process is in its container" to execve, the same for a container's first process and
//! for an exec. In this order: the working directory and the command with the user's rights, then
//! what is left of root's, the seccomp filter last: a profile need allow nothing but execve.

use std::ffi::{CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::capabilities::Sets;
use super::errno::errno_text;
use super::fork;
use super::message::{ChildStdio, Failure, FailureKind};
use super::page::Page;
use super::payload;
use super::seccomp::Filter;

/// linux/close_range.h
const CLOSE_RANGE_CLOEXEC: libc::c_int = 4;
/// linux/keyctl.h
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Who the process becomes.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All groups.
    pub gids: &'a [u32],
    /// Its home directory, unless its environment says another.
    pub home: &'a str,
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |error| {
        Failure::new(
            FailureKind::Internal,
            format!("{what}: {}", errno_text(error)),
        )
    }
}

/// The first steps of a process of a container: a session of its own, with keys of its own.
///
/// # Errors
/// If the kernel refuses.
pub fn new_session() -> Result<(), Failure> {
    rustix::process::setsid().map_err(failed("making a session"))?;
    // Otherwise it would keep the agent's keyring, on a host the node's. Without keyrings in the
    // kernel, or beyond the quota, that one stays; it grants no rights.
    // SAFETY: a null name means an anonymous keyring; no other pointer is passed.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<c_char>(),
        );
    }
    Ok(())
}

/// Puts the standard streams in their places.
///
/// # Errors
/// If the kernel refuses.
pub fn set_stdio(stdio: &ChildStdio) -> Result<(), Failure> {
    let steps = || -> Result<(), Errno> {
        rustix::stdio::dup2_stdin(&stdio.stdin)?;
        rustix::stdio::dup2_stdout(&stdio.stdout)?;
        rustix::stdio::dup2_stderr(&stdio.stderr)
    };
    steps().map_err(failed("setting the standard streams"))
}

/// Makes a terminal the session's, and the standard streams.
///
/// # Errors
/// If the kernel refuses.
pub fn set_terminal(slave: BorrowedFd<'_>) -> Result<(), Failure> {
    let steps = || -> Result<(), Errno> {
        rustix::process::ioctl_tiocsctty(slave)?;
        rustix::stdio::dup2_stdin(slave)?;
        rustix::stdio::dup2_stdout(slave)?;
        rustix::stdio::dup2_stderr(slave)
    };
    steps().map_err(failed("taking the terminal"))
}

/// Becomes the process. Returns only if that fails, with the reason; after the filter is loaded the
/// reason goes to the page, and this process dies.
pub fn execute(
    process: &Process,
    identity: Identity<'_>,
    filter: Option<&Filter>,
    page: &Page,
) -> Failure {
    match prepare(process, identity, filter.is_some()) {
        Ok(ready) => ready.go(filter, page),
        Err(failure) => failure,
    }
}

struct Ready {
    file: CString,
    args: Vec<CString>,
    environment: Vec<CString>,
    sets: Sets,
    no_new_privileges: bool,
}

fn prepare(process: &Process, identity: Identity<'_>, filtered: bool) -> Result<Ready, Failure> {
    let mask = process.user().umask().unwrap_or(0o022);
    rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
    let no_new_privileges = process.no_new_privileges().unwrap_or(false);
    let sets = Sets::of(process.capabilities().as_ref());
    become_user(&sets, identity, filtered && !no_new_privileges)?;
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(failed("setting no_new_privs"))?;
    }
    enter(process.cwd())?;
    let file = payload::find(process)?;
    let text = |text: &str| {
        CString::new(text).map_err(|_| {
            Failure::new(
                FailureKind::InvalidSpec,
                "an argument or a variable has a zero byte",
            )
        })
    };
    let args = process.args().as_deref().unwrap_or_default();
    Ok(Ready {
        file: text(&file.to_string_lossy())?,
        args: args.iter().map(|arg| text(arg)).collect::<Result<_, _>>()?,
        environment: environment(process, identity.home)
            .map(|entry| text(&entry))
            .collect::<Result<_, _>>()?,
        sets,
        no_new_privileges,
    })
}

/// The process's, with a home directory if it has none.
fn environment(process: &Process, home: &str) -> impl Iterator<Item = String> {
    let given = process.env().as_deref().unwrap_or_default();
    let own =
        (!given.iter().any(|entry| entry.starts_with("HOME="))).then(|| format!("HOME={home}"));
    given.iter().cloned().chain(own)
}

/// The bounding set, groups, user, and then what of the capabilities is left.
fn become_user(sets: &Sets, identity: Identity<'_>, filter: bool) -> Result<(), Failure> {
    let groups: Vec<_> = identity
        .gids
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    sets.limit().map_err(failed("limiting the capabilities"))?;
    rustix::thread::set_thread_groups(&groups).map_err(failed("setting the groups"))?;
    rustix::thread::set_keep_capabilities(true).map_err(failed("keeping the capabilities"))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("changing to the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("changing to the user"))?;
    rustix::thread::set_keep_capabilities(false).map_err(failed("keeping the capabilities"))?;
    fork::close_to_others().map_err(failed("closing the process to others"))?;
    sets.take(filter).map_err(failed("taking the capabilities"))
}

/// Enters the working directory with the user's rights. Neither a link of procfs nor anything else
/// may lead out of the container's root (CVE-2024-21626).
fn enter(directory: &Path) -> Result<(), Failure> {
    let refused = |error: Errno| {
        Failure::new(
            FailureKind::InvalidSpec,
            format!("chdir to cwd ({directory:?}): {}", errno_text(error)),
        )
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(rustix::fs::CWD, directory, flags, Mode::empty(), resolve);
    let opened = opened.map_err(refused)?;
    rustix::process::fchdir(&opened).map_err(refused)?;
    // The kernel marks what lies outside with "(unreachable)" (getcwd(2)).
    let inside = rustix::process::getcwd(Vec::new()).map_err(refused)?;
    if inside.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::InvalidSpec,
        format!(
            "chdir to cwd ({directory:?}): the current working directory is outside of the \
             container's root"
        ),
    ))
}

impl Ready {
    fn go(self, filter: Option<&Filter>, page: &Page) -> Failure {
        let pointers = |list: &[CString]| {
            let pointers = list.iter().map(|text| text.as_ptr());
            pointers.chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let (args, environment) = (pointers(&self.args), pointers(&self.environment));
        let file = Path::new(std::ffi::OsStr::new(self.file.to_str().unwrap_or_default()));
        page.note(file);
        fork::reset_signals();
        // Everything the agent opens is close-on-exec; this catches what a bug may have missed.
        // SAFETY: with CLOSE_RANGE_CLOEXEC the call closes nothing, it only sets a flag on descriptors, which
        // stay valid for their owners.
        if unsafe { libc::close_range(3, u32::MAX, CLOSE_RANGE_CLOEXEC) } != 0 {
            return failed("marking descriptors")(last_error());
        }
        if let Some(filter) = filter {
            if !self.no_new_privileges
                && let Err(error) = self.sets.allow_filter()
            {
                return failed("taking the right to load the seccomp filter")(error);
            }
            if let Err(error) = load(filter) {
                return failed("loading the seccomp filter")(error);
            }
        }
        // SAFETY: the path is a C string, both lists end with a null pointer, and what they point
        // to lives in `self`.
        unsafe {
            libc::execve(self.file.as_ptr(), args.as_ptr(), environment.as_ptr());
        }
        let error = last_error();
        if filter.is_none() {
            return payload::refused(file, error);
        }
        page.refused(error);
        // Not even exit is sure to be allowed: an illegal instruction ends the process.
        fork::die()
    }
}

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

/// Loads a seccomp filter.
///
/// # Errors
/// If the kernel refuses: EACCES without no_new_privs and CAP_SYS_ADMIN.
pub fn load(filter: &Filter) -> Result<(), Errno> {
    let mut program: Vec<libc::sock_filter> = filter
        .program
        .iter()
        .map(|word| {
            let bytes = word.to_ne_bytes();
            libc::sock_filter {
                code: u16::from_ne_bytes([bytes[0], bytes[1]]),
                jt: bytes[2],
                jf: bytes[3],
                k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            }
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives over the call and has the length given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            filter.flags,
            &raw const program,
        )
    };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

/// Closes all descriptors but the standard streams and those named, so that a container cannot take
/// its parent's out of it (pidfd_getfd(2)).
///
/// # Safety
/// The process must not use the other descriptors any more, nor drop their owners: their numbers may
/// by then be those of other files.
pub unsafe fn keep_only(keep: &[BorrowedFd<'_>]) {
    let mut numbers: Vec<libc::c_uint> = keep
        .iter()
        .map(|fd| fd.as_fd().as_raw_fd().unsigned_abs())
        .collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if number > first {
            let last = if number == u32::MAX {
                number
            } else {
                number - 1
            };
            // SAFETY: by this function's contract nothing uses or drops the descriptors in the range.
            unsafe {
                libc::close_range(first, last, 0);
            }
        }
        first = number.saturating_add(1).max(first);
    }
}
