//! From "the process is in its container" to execve: finding the command as a shell would, and why
//! it cannot run, in the words that users search for. Used by containers' first processes and by
//! execs.
//!
//! Not here: execve itself (`launcher::finish`).

use std::borrow::Cow;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::fs::Access;
use rustix::io::Errno;

use super::errno::errno_text;
use super::message::{Failure, FailureKind};

/// Where commands are looked for when the process has no PATH.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How many characters of a long message are kept, from its two ends; each takes up to six bytes in
/// JSON.
const BEGINNING: usize = 4096;
const END: usize = 512;

/// The file a command name means, looked for in the container (the caller has entered it) with the
/// identity it will run with.
///
/// # Errors
/// `CommandNotFound` or `NotExecutable`, in the words of runc and containerd.
pub fn find_command(name: &str, path: &str) -> Result<PathBuf, Failure> {
    let failed = |kind, text: String| Failure::new(kind, format!("exec: {name:?}: {text}"));
    if name.contains('/') {
        let file = PathBuf::from(name);
        return match check(&file) {
            Ok(()) => Ok(file),
            Err(error @ (Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG)) => {
                let text = format!("stat {name}: {}", errno_text(error));
                Err(failed(FailureKind::CommandNotFound, text))
            }
            Err(error) => Err(failed(FailureKind::NotExecutable, errno_text(error))),
        };
    }
    let mut denied = false;
    let directories = if name.is_empty() { "" } else { path };
    for directory in directories
        .split(':')
        .filter(|directory| !directory.is_empty())
    {
        let file = Path::new(directory).join(name);
        match check(&file) {
            Ok(()) => return Ok(file),
            Err(Errno::ACCESS | Errno::PERM) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(failed(
            FailureKind::NotExecutable,
            errno_text(Errno::ACCESS),
        ));
    }
    let text = "executable file not found in $PATH".to_owned();
    Err(failed(FailureKind::CommandNotFound, text))
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

/// What it means that the kernel did not execute a file.
pub fn refused(file: &Path, error: Errno) -> Failure {
    let kind = match error {
        Errno::NOENT | Errno::NOTDIR => FailureKind::CommandNotFound,
        Errno::ACCESS | Errno::PERM => FailureKind::NotExecutable,
        Errno::NOEXEC | Errno::TOOBIG | Errno::INVAL | Errno::LIBBAD => FailureKind::InvalidSpec,
        _ => FailureKind::Internal,
    };
    Failure::new(
        kind,
        format!("exec {}: {}", file.display(), errno_text(error)),
    )
}

/// Writes a failure to a status pipe; its reader learns of success by the end of file at execve.
pub fn report(status: OwnedFd, failure: &Failure) {
    let sent = Failure::new(failure.kind, shortened(&failure.message));
    let bytes = serde_json::to_vec(&sent).unwrap_or_default();
    // If the reader is gone, so is the need.
    let _ = std::fs::File::from(status).write_all(&bytes);
}

/// A message that fits into a pipe: a command's name may be of any length. What was attempted is at
/// the beginning, and what came of it at the end.
fn shortened(message: &str) -> Cow<'_, str> {
    let count = message.chars().count();
    if count <= BEGINNING + END {
        return message.into();
    }
    let beginning = message.chars().take(BEGINNING);
    let end = message.chars().skip(count - END);
    beginning.chain(['…']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_failure_with_a_long_name_keeps_its_beginning_and_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let failure = find_command(&"n\u{1}".repeat(100_000), "/bin").unwrap_err();
        report(writer, &failure);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(reader), &mut bytes).unwrap();
        assert!(bytes.len() < 64 * 1024, "{} bytes", bytes.len());
        let received: Failure = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(received.kind, FailureKind::CommandNotFound);
        assert!(received.message.starts_with("exec: \"n"));
        assert!(
            received
                .message
                .ends_with("executable file not found in $PATH")
        );
        assert_eq!(shortened("as it is"), "as it is");
    }

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
        let said = |name: &str| find_command(name, path).unwrap_err().message;
        let nosuch = "exec: \"nosuch\": executable file not found in $PATH";
        assert_eq!(said("nosuch"), nosuch);
        assert_eq!(
            said("/nosuch"),
            "exec: \"/nosuch\": stat /nosuch: no such file or directory"
        );
        assert_eq!(said(path), format!("exec: {path:?}: is a directory"));
        assert_eq!(
            refused(Path::new("/x"), Errno::NOEXEC).message,
            "exec /x: exec format error"
        );
    }
}
