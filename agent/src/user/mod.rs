//! Who a container's process is: the image's user resolved in the image's own files. The image is
//! hostile: its files may be links out of the root, devices, or gigabytes.

pub mod database;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bulkhead_proto::agent::{ResolvedUser, User};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use self::database::{Group, Passwd};

/// The longest /etc/passwd or /etc/group that is read.
const MAX_FILE: u64 = 4 << 20;
/// File systems that the kernel fills: procfs, sysfs, tracefs, debugfs (linux/magic.h).
const KERNELS: [i64; 4] = [0x9fa0, 0x6265_6572, 0x7472_6163, 0x6462_6720];

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    UnknownUser(String),
    /// No such group.
    #[error("unable to find group {0}: no matching entries in group file")]
    UnknownGroup(String),
    /// A file of the image cannot be used.
    #[error("reading the image's {file}")]
    File {
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The root file system cannot be opened.
    #[error("opening the container's root {}", path.display())]
    Root {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        error: Errno,
    },
}

/// A resolved user.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    /// Numbers.
    pub user: ResolvedUser,
}

/// Resolves a user against the files below `root`.
///
/// # Errors
/// For names the image does not know, and for files it should not have.
pub fn resolve(root: &Path, user: &User) -> Result<Identity, UserError> {
    let directory = open_root(root)?;
    let passwd = read_text(&directory, "etc/passwd")?;
    let group = read_text(&directory, "etc/group")?;
    resolve_in(user, &passwd, &group)
}

/// The home directory of a user, by the passwd file below `root` as it is now; `/` for one it does
/// not have, and if it cannot be read.
pub fn home(root: &Path, uid: u32) -> String {
    let text = open_root(root).and_then(|root| read_text(&root, "etc/passwd"));
    let text = text.unwrap_or_default();
    let entry = database::user_by_id(&text, uid);
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty());
    home.unwrap_or("/").to_owned()
}

fn open_root(root: &Path) -> Result<OwnedFd, UserError> {
    rustix::fs::open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| UserError::Root {
        path: root.to_owned(),
        error,
    })
}

/// Opens a path as the container would see it: links cannot lead out of its root.
fn open_in(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    rustix::fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A text file of the image; one that is not there is empty. Bytes that are no UTF-8 are replaced:
/// they can only be in fields that are not compared.
fn read_text(root: &OwnedFd, file: &'static str) -> Result<String, UserError> {
    let failed = |error: io::Error| UserError::File { file, error };
    // NONBLOCK: opening a fifo must not block.
    let fd = match open_in(root, Path::new(file), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(error) => return Err(failed(error.into())),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::other("is not a regular file")));
    }
    // A link may lead there, and reading some of them takes what others wait for (/proc/kmsg).
    let of = rustix::fs::fstatfs(&fd).map_err(|error| failed(error.into()))?;
    if KERNELS.contains(&of.f_type) {
        return Err(failed(io::Error::other(
            "is on a file system of the kernel (procfs, sysfs, tracefs or debugfs)",
        )));
    }
    let mut bytes = Vec::new();
    let read = std::fs::File::from(fd)
        .take(MAX_FILE + 1)
        .read_to_end(&mut bytes);
    if read.map_err(failed)? as u64 > MAX_FILE {
        return Err(failed(io::Error::other("is longer than 4 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The resolution itself, on the texts of the two files.
///
/// # Errors
/// For names the files do not have.
pub fn resolve_in(user: &User, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user_name, group_name) = match user.name.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user.name.as_str(), None),
    };
    let entry = match user.uid {
        Some(uid) => Ok(database::user_by_id(passwd, uid).unwrap_or(Passwd::nameless(uid))),
        None if user_name.is_empty() => {
            Ok(database::user_by_id(passwd, 0).unwrap_or(Passwd::nameless(0)))
        }
        None => match (
            database::user_by_name(passwd, user_name),
            database::id(user_name),
        ) {
            (Some(entry), _) => Ok(entry),
            (None, Some(uid)) => {
                Ok(database::user_by_id(passwd, uid).unwrap_or(Passwd::nameless(uid)))
            }
            (None, None) => Err(UserError::UnknownUser(user_name.to_owned())),
        },
    }?;
    let gid = match (user.gid, group_name) {
        (Some(gid), _) => gid,
        (None, Some(name)) => database::group_by_name(group, name)
            .map(|group| group.gid)
            .or_else(|| database::id(name))
            .ok_or_else(|| UserError::UnknownGroup(name.to_owned()))?,
        (None, None) => entry.gid,
    };
    let mut gids = vec![gid];
    if !user.strict_groups && !entry.name.is_empty() {
        gids.extend(database::groups_of(group, entry.name).map(|group: Group<'_>| group.gid));
    }
    gids.extend(&user.supplemental_gids);
    let mut seen = std::collections::HashSet::new();
    gids.retain(|gid| seen.insert(*gid));
    Ok(Identity {
        user: ResolvedUser {
            uid: entry.uid,
            gid,
            gids,
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::report;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbad line\n\
        www-data:x:33:33:www:/var/www:/usr/sbin/nologin\nweb:x:1000:1000::/home/web:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww-data:x:33:web\nadm:x:4:web,root\nbroken:x:y:web\n";

    fn user(name: &str) -> User {
        User {
            name: name.into(),
            ..User::default()
        }
    }

    fn numbers(user: &User) -> Result<(u32, u32, Vec<u32>), String> {
        resolve_in(user, PASSWD, GROUP)
            .map(|identity| (identity.user.uid, identity.user.gid, identity.user.gids))
            .map_err(|error| report(&error))
    }

    #[test]
    fn users_are_resolved_by_name_and_by_number() {
        assert_eq!(numbers(&user("")), Ok((0, 0, vec![0, 4])));
        assert_eq!(numbers(&user("www-data")), Ok((33, 33, vec![33])));
        assert_eq!(numbers(&user("1000")), Ok((1000, 1000, vec![1000, 33, 4])));
        assert_eq!(numbers(&user("5000")), Ok((5000, 0, vec![0])));
        assert_eq!(numbers(&user("web:adm")), Ok((1000, 4, vec![4, 33])));
        assert_eq!(numbers(&user("5000:77")), Ok((5000, 77, vec![77])));
        assert!(numbers(&user("nobody")).unwrap_err().contains("nobody"));
        assert!(numbers(&user("web:staff")).unwrap_err().contains("staff"));
        assert!(numbers(&user("4294967295")).is_err());
    }

    #[test]
    fn the_id_that_means_no_change_is_refused() {
        let passwd = "all:x:4294967295:5::/:\ngroup:x:7:4294967295::/:\nweb:x:7:8::/:\n";
        let group = "none:x:4294967295:web\n";
        assert!(resolve_in(&user("all"), passwd, group).is_err());
        assert!(resolve_in(&user("group"), passwd, group).is_err());
        assert!(resolve_in(&user("web:none"), passwd, group).is_err());
        let found = resolve_in(&user("7"), passwd, group).unwrap().user;
        assert_eq!((found.uid, found.gid, found.gids), (7, 8, vec![8]));
    }

    #[test]
    fn the_pod_overrides_the_image() {
        let mut given = user("www-data");
        given.uid = Some(1000);
        given.gid = Some(7);
        given.supplemental_gids = vec![9, 7];
        assert_eq!(numbers(&given), Ok((1000, 7, vec![7, 33, 4, 9])));
        given.strict_groups = true;
        assert_eq!(numbers(&given), Ok((1000, 7, vec![7, 9])));
    }

    #[test]
    fn files_of_kernel_file_systems_are_not_read() {
        let root = open_root(Path::new("/")).unwrap();
        for file in ["proc/version", "sys/kernel/uevent_seqnum"] {
            let error = read_text(&root, file).unwrap_err();
            assert!(report(&error).contains("of the kernel ("), "{error}");
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/group")).unwrap();
        std::os::unix::fs::symlink(
            "../../../../../../etc/shadow",
            root.path().join("etc/passwd"),
        )
        .unwrap();
        // Both links point to files the image does not have.
        let error = resolve(root.path(), &user("root")).map(|identity| identity.user);
        match error {
            Err(UserError::UnknownUser(_)) | Err(UserError::File { .. }) => {}
            other => panic!("resolved through a link: {other:?}"),
        }
    }

    #[test]
    fn the_home_comes_from_the_current_passwd_file() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(home(root.path(), 0), "/");
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        assert_eq!(home(root.path(), 33), "/var/www");
        assert_eq!(home(root.path(), 7), "/");
    }

    #[test]
    fn a_fifo_or_a_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/passwd")).unwrap();
        assert!(matches!(
            resolve(root.path(), &user("")),
            Err(UserError::File { .. })
        ));
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(passwd in ".*", group in ".*", name in ".{0,20}") {
            let _ = resolve_in(&user(&name), &passwd, &group);
        }
    }
}
