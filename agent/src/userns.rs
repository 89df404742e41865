//! The pod's user namespace, if it has one of its own: which ids of the guest its ids are, and
//! mounts whose files belong to it.
//!
//! The namespace itself is made by the launcher with the first process of the pod's shared PID
//! namespace, which holds both; containers join it there.

use std::os::fd::OwnedFd;
use std::path::Path;

use bulkhead_proto::agent;
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use serde::{Deserialize, Serialize};

use crate::mount_attr;

/// What is wrong with a user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// A range that cannot be one.
    #[error("user_namespace.{0}: a range of at least one id below 4294967295")]
    Range(&'static str),
    /// An id outside the namespace.
    #[error(
        "{what} {id} does not exist in the pod's user namespace, which has {length} ids from 0: \
         run the container with a lower one"
    )]
    Unmapped {
        /// "user" or "group".
        what: &'static str,
        /// The id.
        id: u32,
        /// How many there are.
        length: u32,
    },
}

/// `length` ids from 0 inside, from `first` outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The id of the guest that 0 inside is.
    pub first: u32,
    /// How many.
    pub length: u32,
}

impl Range {
    /// The line of uid_map or gid_map (user_namespaces(7)).
    pub fn line(self) -> String {
        format!("0 {} {}\n", self.first, self.length)
    }

    fn check(self, what: &'static str, id: u32) -> Result<(), UsernsError> {
        if id < self.length {
            return Ok(());
        }
        let length = self.length;
        Err(UsernsError::Unmapped { what, id, length })
    }
}

/// Both ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Users.
    pub uids: Range,
    /// Groups.
    pub gids: Range,
}

impl TryFrom<&agent::UserNamespace> for IdMap {
    type Error = UsernsError;

    fn try_from(asked: &agent::UserNamespace) -> Result<Self, UsernsError> {
        let range = |range: Option<agent::IdRange>, field| {
            let range = range.ok_or(UsernsError::Range(field))?;
            let end = range.first.checked_add(range.length);
            if range.length == 0 || end.is_none() {
                return Err(UsernsError::Range(field));
            }
            Ok(Range {
                first: range.first,
                length: range.length,
            })
        };
        Ok(Self {
            uids: range(asked.uids, "uids")?,
            gids: range(asked.gids, "gids")?,
        })
    }
}

impl IdMap {
    /// Whether a process can be this user with these groups.
    ///
    /// # Errors
    /// For an id out of range.
    pub fn check(&self, user: &agent::ResolvedUser) -> Result<(), UsernsError> {
        self.uids.check("user", user.uid)?;
        self.gids.check("group", user.gid)?;
        user.gids
            .iter()
            .try_for_each(|gid| self.gids.check("group", *gid))
    }
}

/// The guest's ids of a container's user and group. One out of range stays what it is: such a
/// process is refused elsewhere.
pub fn outside(map: Option<&IdMap>, uid: u32, gid: u32) -> (u32, u32) {
    match map {
        Some(map) => (
            map.uids.first.checked_add(uid).unwrap_or(uid),
            map.gids.first.checked_add(gid).unwrap_or(gid),
        ),
        None => (uid, gid),
    }
}

/// Mounts the tree at `source` once more, at `target`, with its files' owners seen through a user
/// namespace: what belongs to user 0 on the disk belongs to the namespace's user 0.
///
/// # Errors
/// If the kernel refuses: EINVAL for a file system that cannot do this.
pub fn mount_mapped(source: &Path, target: &Path, namespace: &OwnedFd) -> Result<(), Errno> {
    let tree = open_tree(
        CWD,
        source,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    mount_attr::map_owners(&tree, namespace)?;
    move_mount(
        &tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// Mounts sysfs with nothing mounted in it, if it is not there.
///
/// # Errors
/// If the kernel refuses.
pub fn mount_sysfs(at: &Path) -> std::io::Result<()> {
    if at.join("kernel").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(at)?;
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("sysfs", at, "sysfs", strict, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(first: u32, length: u32) -> Result<IdMap, UsernsError> {
        let range = Some(agent::IdRange { first, length });
        IdMap::try_from(&agent::UserNamespace {
            uids: range,
            gids: range,
        })
    }

    #[test]
    fn invalid_id_ranges_are_refused() {
        assert!(map(1000, 65536).is_ok());
        assert!(map(0, 0).is_err());
        assert!(map(u32::MAX, 1).is_err());
        assert!(IdMap::try_from(&agent::UserNamespace::default()).is_err());
        let map = map(1000, 65536).unwrap();
        assert_eq!(map.uids.line(), "0 1000 65536\n");
        assert_eq!(outside(Some(&map), 5, 0), (1005, 1000));
        assert_eq!(outside(None, 5, 0), (5, 0));
    }

    #[test]
    fn users_and_groups_must_exist() {
        let map = map(1000, 65536).unwrap();
        let user = |uid, gid, extra| agent::ResolvedUser {
            uid,
            gid,
            gids: vec![gid, extra],
        };
        assert!(map.check(&user(65535, 0, 65535)).is_ok());
        for bad in [user(65536, 0, 0), user(0, 65536, 0), user(0, 0, 70000)] {
            assert!(map.check(&bad).is_err());
        }
    }
}
