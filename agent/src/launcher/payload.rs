//! From "the process is in its container" to execve: finding the command as a shell would, and
//! telling apart why it cannot run. Used by both ways into a container.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::runtime::Process;
use rustix::fs::Access;
use rustix::io::Errno;

use super::message::{Failure, FailureKind};

/// Where commands are looked for when the process has no PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file a command name means, looked for in the container (the caller has entered it) with the
/// identity it will run with.
///
/// # Errors
/// `CommandNotFound` or `NotExecutable`.
pub fn find_command(name: &str, path: &str) -> Result<PathBuf, Failure> {
    let not_found = |text: String| Failure::new(FailureKind::CommandNotFound, text);
    let not_executable = |text: String| Failure::new(FailureKind::NotExecutable, text);
    if name.is_empty() {
        return Err(not_found(
            "the command is an empty string; give one in the image or the pod".into(),
        ));
    }
    if name.contains('/') {
        let file = PathBuf::from(name);
        return match check(&file) {
            Ok(()) => Ok(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Err(not_found(
                format!("command {name:?}: no such file in the image"),
            )),
            Err(error) => Err(not_executable(format!(
                "command {name:?} cannot be executed by the container's user: {error}"
            ))),
        };
    }
    let mut denied = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let file = Path::new(directory).join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(Errno::ACCESS | Errno::PERM | Errno::ISDIR) => {
                denied.get_or_insert(file);
            }
            Err(_) => {}
        }
    }
    match denied {
        Some(file) => Err(not_executable(format!(
            "command {name:?}: {} is there and cannot be executed by the container's user",
            file.display()
        ))),
        None => Err(not_found(format!(
            "command {name:?}: not found in the image, PATH is {path}"
        ))),
    }
}

fn check(file: &Path) -> Result<(), Errno> {
    let stat = rustix::fs::stat(file)?;
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::RegularFile => {}
        rustix::fs::FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::ACCESS),
    }
    // Root may execute only what somebody may execute; access(2) knows that.
    rustix::fs::accessat(
        rustix::fs::CWD,
        file,
        Access::EXEC_OK,
        rustix::fs::AtFlags::EACCESS,
    )
}

/// The value of PATH in an environment of `NAME=value` strings; the last one counts.
pub fn path_of(process: &Process) -> &str {
    let environment = process.env().as_deref().unwrap_or_default();
    environment
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH)
}

/// Finds the command of a process.
///
/// # Errors
/// As [`find_command`], and `InvalidSpec` without any argument.
pub fn find(process: &Process) -> Result<PathBuf, Failure> {
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().ok_or_else(|| {
        Failure::new(
            FailureKind::InvalidSpec,
            "the process has no command; give one in the image or the pod",
        )
    })?;
    find_command(name, path_of(process))
}

/// Becomes the process; returns only the reason why that failed.
pub fn execute(process: &Process) -> Failure {
    let file = match find(process) {
        Ok(file) => file,
        Err(failure) => return failure,
    };
    let args = process.args().as_deref().unwrap_or_default();
    let environment = process.env().as_deref().unwrap_or_default();
    let mut command = Command::new(&file);
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    command
        .env_clear()
        .envs(environment.iter().filter_map(|entry| entry.split_once('=')));
    super::fork::reset_signals();
    let error = command.exec();
    let file = file.display();
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => Failure::new(
            FailureKind::CommandNotFound,
            format!("executing {file}: the interpreter or loader it names is not in the image"),
        ),
        Some(Errno::ACCESS | Errno::PERM) => Failure::new(
            FailureKind::NotExecutable,
            format!("executing {file}: {error}"),
        ),
        Some(Errno::NOEXEC) => Failure::new(
            FailureKind::InvalidSpec,
            format!(
                "executing {file}: not a program for this machine (x86_64), and not a script with an interpreter line"
            ),
        ),
        _ => Failure::new(FailureKind::Internal, format!("executing {file}: {error}")),
    }
}

/// Tells a failure on a status pipe; its reader learns of success by the end of file at execve.
pub fn report(status: OwnedFd, failure: &Failure) {
    let bytes = serde_json::to_vec(failure).unwrap_or_default();
    // Nobody to tell if the reader is gone.
    let _ = std::fs::File::from(status).write_all(&bytes);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn commands_are_found_and_refused_as_a_shell_would() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        let file = directory.path().join("tool");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let kind = |name: &str| find_command(name, path).map_err(|failure| failure.kind);
        assert_eq!(kind("tool"), Err(FailureKind::NotExecutable));
        assert_eq!(kind("absent"), Err(FailureKind::CommandNotFound));
        assert_eq!(kind(""), Err(FailureKind::CommandNotFound));
        assert_eq!(kind(path), Err(FailureKind::NotExecutable));
        assert_eq!(
            kind(&format!("{path}/tool/x")),
            Err(FailureKind::CommandNotFound)
        );
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(kind("tool"), Ok(file.clone()));
        assert_eq!(kind(file.to_str().unwrap()), Ok(file));
    }
}
