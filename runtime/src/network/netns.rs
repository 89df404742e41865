//! Network namespaces of pods: a file each, held by a bind mount, so that CNI plugins find them
//! and they live while no process is in them. Work inside one is done by a thread of its own that
//! ends with the work: a pooled thread must never be left in a pod's namespace.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Mutex,
    thread,
};

use bulkhead_common::lock;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    fs::{FlockOperation, flock, statfs},
    mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount},
};
use tokio::sync::oneshot;

use super::NetworkError;

/// The file system namespaces are files of (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Threads here do a little netlink work.
const STACK_BYTES: usize = 256 << 10;

/// Makes a namespace at `path` with its loopback interface still down. Blocks for a moment.
///
/// # Errors
/// If the file exists (a namespace is never taken over), or the kernel refuses; nothing is left.
pub fn create(path: &Path) -> Result<(), NetworkError> {
    let failed = |what| {
        move |source| NetworkError::Namespace {
            what,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(dir) = path.parent() {
        shared_directory(dir).map_err(failed("make the directory of"))?;
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path)
        .map_err(failed("make the file of"))?;
    let target = path.to_owned();
    let made = thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            mount_bind("/proc/thread-self/ns/net", &target)?;
            Ok(())
        })
        .map_err(failed("start a thread for"))?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")));
    made.map_err(|source| {
        // Not bound: the file is all there is.
        let _ = fs::remove_file(path);
        failed("make")(source)
    })
}

/// The directory of the namespaces is a mount of its own that others' mount namespaces see, as
/// `ip netns` has it: a namespace unmounted here must not stay pinned in a copy elsewhere.
fn shared_directory(dir: &Path) -> io::Result<()> {
    // One at a time, or the second would cover what is mounted in the first's.
    static MAKING: Mutex<()> = Mutex::new(());
    let _alone = lock(&MAKING);
    fs::create_dir_all(dir)?;
    if mount_change(dir, MountPropagationFlags::SHARED).is_ok() {
        return Ok(());
    }
    // Others make it a mount as well; this is the lock iproute2 takes. Any user can hold it, so it
    // is not waited for.
    let directory = File::open(dir)?;
    let _held = flock(&directory, FlockOperation::NonBlockingLockExclusive);
    if mount_change(dir, MountPropagationFlags::SHARED).is_err() {
        mount_bind(dir, dir)?;
        mount_change(dir, MountPropagationFlags::SHARED)?;
    }
    Ok(())
}

/// Whether there is a namespace at `path`: after a reboot there is none. Blocks for a moment.
pub fn exists(path: &Path) -> bool {
    statfs(path).is_ok_and(|file_system| file_system.f_type == NSFS_MAGIC)
}

/// Does `work` in a new namespace, which ends with it. Blocks.
///
/// # Errors
/// If the kernel gives none.
pub fn in_new<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || -> io::Result<T> {
            unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
            Ok(work())
        })?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}

/// Releases a namespace. Repeatable: one that does not exist is fine. Blocks for a moment.
///
/// # Errors
/// If the kernel refuses.
pub fn remove(path: &Path) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Namespace {
        what: "remove",
        path: path.to_owned(),
        source,
    };
    loop {
        // Stacked mounts are all taken off; EINVAL says that nothing is mounted there (any more).
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => break,
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Runs `work` in the namespace, on a thread of its own with a small async runtime (netlink
/// sockets belong to the namespace they were opened in).
///
/// # Errors
/// Those of the work, or that the namespace could not be entered.
pub async fn within<T, F, W>(path: &Path, work: W) -> Result<T, NetworkError>
where
    T: Send + 'static,
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = Result<T, NetworkError>>,
{
    let (answer, answered) = oneshot::channel();
    let inside = path.to_owned();
    let failed = |what| {
        let path = path.to_owned();
        move |source| NetworkError::Namespace { what, path, source }
    };
    thread::Builder::new()
        .name("netns".to_owned())
        .stack_size(STACK_BYTES * 4)
        .spawn(move || {
            let enter = || -> Result<tokio::runtime::Runtime, io::Error> {
                setns(File::open(&inside)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                tokio::runtime::Builder::new_current_thread()
                    .enable_io()
                    .enable_time()
                    .build()
            };
            let result = match enter() {
                Ok(runtime) => runtime.block_on(work()),
                Err(source) => Err(NetworkError::Namespace {
                    what: "enter",
                    path: inside,
                    source,
                }),
            };
            // The caller may have gone; then the answer is dropped.
            let _ = answer.send(result);
        })
        .map_err(failed("start a thread for"))?;
    answered.await.unwrap_or_else(|_| {
        Err(NetworkError::Thread {
            path: path.to_owned(),
            what: "ended without an answer",
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Making namespaces needs root; elsewhere the end-to-end tests have the say.
    fn root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[tokio::test]
    async fn a_namespace_is_made_entered_and_removed_twice() {
        if !root() {
            eprintln!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns/pod");
        create(&path).unwrap();
        assert!(
            matches!(create(&path), Err(NetworkError::Namespace { .. })),
            "never taken over"
        );
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let inside = within(&path, || async {
            Ok(fs::read_link("/proc/thread-self/ns/net").unwrap())
        })
        .await
        .unwrap();
        assert_ne!(own, inside);
        assert!(exists(&path));
        remove(&path).unwrap();
        assert!(!exists(&path));
        remove(&path).unwrap();
        assert!(!path.exists());
        unmount(dir.path().join("netns"), UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn a_file_that_a_reboot_left_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!exists(file.path()));
        assert!(!exists(Path::new("/no/such/netns")));
        assert!(exists(Path::new("/proc/self/ns/net")));
    }

    #[test]
    fn directories_are_made_shared_once_however_many_ask() {
        if !root() {
            eprintln!("skipped: not root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        thread::scope(|scope| {
            for number in 0..8 {
                let path = path.join(format!("pod{number}"));
                scope.spawn(move || create(&path).unwrap());
            }
        });
        // None is covered by a second mount of the directory.
        for number in 0..8 {
            let path = path.join(format!("pod{number}"));
            assert!(exists(&path), "{number}");
            remove(&path).unwrap();
        }
        unmount(&path, UnmountFlags::DETACH).unwrap();
        assert_eq!(
            unmount(&path, UnmountFlags::DETACH),
            Err(rustix::io::Errno::INVAL)
        );
    }

    #[tokio::test]
    async fn a_missing_namespace_is_named() {
        let error = within(Path::new("/no/such/netns"), || async { Ok(()) })
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("/no/such/netns"), "{error}");
    }
}
