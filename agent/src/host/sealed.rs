//! The agent of a pod on the host runs from a sealed copy of its program in memory. Its program is
//! the node's own file, and its children become processes of containers: one of them that reopens
//! `/proc/self/exe`, or whose image has that as its entrypoint, could otherwise write to the
//! program that the node starts for the next pod (CVE-2019-5736). A sealed memfd cannot be written,
//! not even by root, and no other process runs from it.

use std::ffi::{CString, NulError, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::ptr;

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;

/// The program's name in `ps`; a program without a path would have its descriptor's number.
const NAME: &str = "bulkhead-agent";
/// In the environment of what was executed from a copy.
const MARK: &str = "BULKHEAD_AGENT_SEALED=1";

/// Why the agent does not run from a sealed copy. It must not run then.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A step of the copy.
    #[error("sealing the agent's program: {step}")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// No copy that can be executed.
    #[error(
        "sealing the agent's program: making an executable file in memory (the node forbids it where \
         the sysctl vm.memfd_noexec is 2)"
    )]
    Memory {
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The copy was executed, and is none.
    #[error(
        "sealing the agent's program: it was executed from a sealed copy, and /proc/self/exe is not \
         one; is /proc the node's?"
    )]
    Again,
}

/// Returns in a process whose program is a sealed copy, with the same arguments, environment and
/// standard streams: this one, or the same one executed anew.
///
/// # Errors
/// If no such copy can be made.
pub fn ensure() -> Result<(), SealError> {
    let failed = |step| move |error: Errno| step_failed(step)(error.into());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let program = rustix::fs::openat(CWD, "/proc/self/exe", flags, Mode::empty())
        .map_err(failed("opening /proc/self/exe"))?;
    if is_sealed(&program) {
        let name = CString::new(NAME).map_err(no_string)?;
        // Only what `ps` says.
        let _ = rustix::thread::set_name(&name);
        return Ok(());
    }
    let mut environment = environment()?;
    let mark = CString::new(MARK).map_err(no_string)?;
    if environment.contains(&mark) {
        return Err(SealError::Again);
    }
    environment.push(mark);
    let arguments = std::env::args_os()
        .map(|argument| CString::new(argument.into_vec()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(no_string)?;
    Err(execute(&copy(program)?, &arguments, &environment))
}

/// Whether a file can be neither written nor resized, for good.
fn is_sealed(file: impl AsFd) -> bool {
    // EINVAL: of a file system that has no seals.
    rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(seals_wanted()))
}

fn seals_wanted() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

fn copy(program: OwnedFd) -> Result<OwnedFd, SealError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create(NAME, flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 all of them can be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create(NAME, flags),
        other => other,
    };
    let copy = copy.map_err(|error| SealError::Memory {
        error: error.into(),
    })?;
    let mut copy = File::from(copy);
    io::copy(&mut File::from(program), &mut copy).map_err(step_failed("copying it"))?;
    let copy = OwnedFd::from(copy);
    rustix::fs::fcntl_add_seals(&copy, seals_wanted())
        .map_err(|error| step_failed("sealing the copy")(error.into()))?;
    Ok(copy)
}

fn environment() -> Result<Vec<CString>, SealError> {
    let entry = |name: &OsStr, value: &OsStr| {
        CString::new([name.as_bytes(), value.as_bytes()].join(&b'=')).map_err(no_string)
    };
    std::env::vars_os()
        .map(|(name, value)| entry(&name, &value))
        .collect()
}

/// Returns if it fails only.
fn execute(program: &OwnedFd, arguments: &[CString], environment: &[CString]) -> SealError {
    let list = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let pointers = strings.iter().map(|string| string.as_ptr());
        pointers.chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (list(arguments), list(environment));
    // SAFETY: the path is an empty C string, both lists are of C strings and end with a null
    // pointer, and all of them live over the call, which only reads them.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    step_failed("executing the copy")(io::Error::last_os_error())
}

fn step_failed(step: &'static str) -> impl Fn(io::Error) -> SealError {
    move |error| SealError::Step { step, error }
}

/// What came from the kernel as a C string has no zero in it.
fn no_string(error: NulError) -> SealError {
    step_failed("reading its arguments and environment")(error.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_copy_is_sealed_and_a_file_is_not() {
        let program = File::open("/proc/self/exe").unwrap();
        assert!(!is_sealed(&program));
        let length = program.metadata().unwrap().len();
        let sealed = File::from(copy(program.into()).unwrap());
        assert!(is_sealed(&sealed));
        assert_eq!(sealed.metadata().unwrap().len(), length);
        let error = sealed.write_at(b"#!", 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(sealed.set_len(0).is_err() && sealed.set_len(length + 1).is_err());
        assert!(rustix::fs::fcntl_add_seals(&sealed, SealFlags::FUTURE_WRITE).is_err());
        // One that lacks a seal is none.
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let open = rustix::fs::memfd_create("x", flags).unwrap();
        rustix::fs::fcntl_add_seals(&open, SealFlags::WRITE | SealFlags::SEAL).unwrap();
        assert!(!is_sealed(&open));
    }
}
