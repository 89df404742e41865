//! POSIX ACLs, as the kernel passes them in extended attributes (linux/posix_acl_xattr.h). Pure.
//!
//! The guest's kernel decides by them; to the host they are data. What a file system does about them
//! is done here: the mode follows the ACL and the ACL the mode, and a directory passes its default ACL
//! on (fs/posix_acl.c).

use rustix::io::Errno;

/// POSIX_ACL_XATTR_VERSION.
const VERSION: u32 = 2;
const HEAD: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

const RWX: u16 = 0o7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// An ACL that the kernel would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

/// What a new file has of its directory's default ACL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The permission bits it is made with, all nine.
    pub mode: u32,
    /// Its ACL, unless the mode says it all.
    pub access: Option<Acl>,
}

impl Acl {
    /// Reads the attribute's value.
    ///
    /// # Errors
    /// INVAL when it is none.
    pub fn parse(value: &[u8]) -> Result<Self, Errno> {
        let (head, mut rest) = value.split_at_checked(HEAD).ok_or(Errno::INVAL)?;
        if head != VERSION.to_le_bytes() {
            return Err(Errno::INVAL);
        }
        let mut entries = Vec::with_capacity(rest.len() / ENTRY);
        while let Some((entry, after)) = rest.split_first_chunk::<ENTRY>() {
            let [t0, t1, p0, p1, i0, i1, i2, i3] = *entry;
            entries.push(Entry {
                tag: u16::from_le_bytes([t0, t1]),
                permissions: u16::from_le_bytes([p0, p1]),
                id: u32::from_le_bytes([i0, i1, i2, i3]),
            });
            rest = after;
        }
        let acl = Acl(entries);
        if !rest.is_empty() || !acl.is_valid() {
            return Err(Errno::INVAL);
        }
        Ok(acl)
    }

    /// The attribute's value.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.permissions.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        out
    }

    /// In the kernel's order (`posix_acl_valid`): the three of the mode, once each, and a mask where
    /// there are more.
    fn is_valid(&self) -> bool {
        let ordered = self.0.is_sorted_by_key(|entry| entry.tag);
        let known = |entry: &Entry| {
            matches!(
                entry.tag,
                USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER
            ) && entry.permissions & !RWX == 0
        };
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        ordered
            && self.0.iter().all(known)
            && [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|t| count(*t) == 1)
            && count(MASK) <= 1
            && (count(MASK) == 1 || count(USER) + count(GROUP) == 0)
    }

    fn of(&self, tag: u16) -> Option<u16> {
        let found = self.0.iter().find(|entry| entry.tag == tag)?;
        Some(found.permissions)
    }

    fn keep(&mut self, tag: u16, kept: u16) {
        for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
            entry.permissions &= kept;
        }
    }

    fn set(&mut self, tag: u16, permissions: u16) {
        for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
            entry.permissions = permissions;
        }
    }

    /// The entry that the mode's group bits are of.
    fn class(&self) -> u16 {
        match self.of(MASK) {
            Some(_) => MASK,
            None => GROUP_OBJ,
        }
    }

    /// The nine permission bits that go with it.
    #[must_use]
    pub fn mode(&self) -> u32 {
        [USER_OBJ, self.class(), OTHER]
            .into_iter()
            .fold(0, |mode, tag| {
                mode << 3 | u32::from(self.of(tag).unwrap_or(0))
            })
    }

    /// Whether the mode says it all.
    #[must_use]
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The mode of a file that cannot have this ACL: nobody may what the ACL forbids.
    #[must_use]
    pub fn mode_without(&self) -> u32 {
        let group = self.of(GROUP_OBJ).unwrap_or(0) & self.of(self.class()).unwrap_or(0);
        self.mode() & !0o070 | u32::from(group) << 3
    }

    /// After a chmod to `mode`.
    pub fn change_mode(&mut self, mode: u32) {
        let class = self.class();
        for (tag, shift) in [(USER_OBJ, 6), (class, 3), (OTHER, 0)] {
            self.set(tag, bits(mode, shift));
        }
    }

    /// What a file made with `mode`, whatever its maker's umask, has of this default ACL.
    #[must_use]
    pub fn inherit(&self, mode: u32) -> Inherited {
        let mut access = self.clone();
        let class = access.class();
        for (tag, shift) in [(USER_OBJ, 6), (class, 3), (OTHER, 0)] {
            access.keep(tag, bits(mode, shift));
        }
        Inherited {
            mode: access.mode(),
            access: Some(access).filter(|acl| !acl.is_minimal()),
        }
    }
}

fn bits(mode: u32, shift: u32) -> u16 {
    // Three bits.
    u16::try_from(mode >> shift & u32::from(RWX)).unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The value of an ACL: tag, permissions, id.
    pub fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let entry = |&(tag, permissions, id): &(u16, u16, u32)| Entry {
            tag,
            permissions,
            id,
        };
        Acl(entries.iter().map(entry).collect()).to_bytes()
    }

    const NONE: u32 = u32::MAX;

    fn extended() -> Vec<u8> {
        value(&[
            (USER_OBJ, 6, NONE),
            (USER, 7, 1000),
            (GROUP_OBJ, 4, NONE),
            (MASK, 5, NONE),
            (OTHER, 0, NONE),
        ])
    }

    #[test]
    fn the_mode_follows_the_acl_and_the_acl_the_mode() {
        let mut acl = Acl::parse(&extended()).unwrap();
        assert!(!acl.is_minimal());
        assert_eq!((acl.mode(), acl.mode_without()), (0o650, 0o640));
        acl.change_mode(0o4731);
        assert_eq!(acl.mode(), 0o731);
        // The mask, not the group.
        assert_eq!((acl.of(MASK), acl.of(GROUP_OBJ)), (Some(3), Some(4)));
        let mut plain = Acl::parse(&value(&[
            (USER_OBJ, 6, NONE),
            (GROUP_OBJ, 4, NONE),
            (OTHER, 1, NONE),
        ]))
        .unwrap();
        assert!(plain.is_minimal());
        assert_eq!((plain.mode(), plain.mode_without()), (0o641, 0o641));
        plain.change_mode(0o751);
        assert_eq!(plain.of(GROUP_OBJ), Some(5));
    }

    #[test]
    fn a_new_file_has_its_directorys_default_less_what_its_maker_left_out() {
        let default = Acl::parse(&extended()).unwrap();
        let made = default.inherit(0o666);
        assert_eq!(made.mode, 0o640);
        let access = made.access.unwrap();
        assert_eq!((access.of(USER), access.of(MASK)), (Some(7), Some(4)));
        let plain = value(&[(USER_OBJ, 7, NONE), (GROUP_OBJ, 5, NONE), (OTHER, 5, NONE)]);
        let made = Acl::parse(&plain).unwrap().inherit(0o600);
        assert_eq!((made.mode, made.access), (0o600, None));
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused() {
        let three = [(USER_OBJ, 6, NONE), (GROUP_OBJ, 4, NONE), (OTHER, 0, NONE)];
        assert!(Acl::parse(&value(&three)).is_ok());
        let with = |more: &[(u16, u16, u32)]| [&three[..], more].concat();
        for bad in [
            value(&[]),
            value(&three[1..]),
            value(&with(&[(USER, 7, 5)])),
            value(&with(&[(OTHER, 0, NONE)])),
            value(&with(&[(0x40, 0, NONE)])),
            value(&[three[1], three[0], three[2]]),
            value(&[(USER_OBJ, 8, NONE), three[1], three[2]]),
            // More than the three, and no mask.
            value(&[three[0], (USER, 7, 1), three[1], three[2]]),
            value(&three)[1..].to_vec(),
            [&value(&three)[..], b"x"].concat(),
            b"\x01\0\0\0".to_vec(),
            vec![],
        ] {
            assert_eq!(Acl::parse(&bad), Err(Errno::INVAL), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_value_is_read_or_refused(
            value in proptest::collection::vec(any::<u8>(), 0..80),
            entries in proptest::collection::vec((0u16..0x22, 0u16..9, any::<u32>()), 0..9),
            mode in 0u32..0o10000,
        ) {
            let _ = Acl::parse(&value);
            let value = super::tests::value(&entries);
            if let Ok(mut acl) = Acl::parse(&value) {
                prop_assert_eq!(acl.to_bytes(), value);
                let made = acl.inherit(mode);
                // Nobody gets more than the maker gave.
                prop_assert_eq!(made.mode & !mode, 0);
                if let Some(access) = made.access {
                    prop_assert_eq!(access.mode(), made.mode);
                    prop_assert!(access.is_valid());
                }
                acl.change_mode(mode);
                prop_assert_eq!(acl.mode(), mode & 0o777);
            }
        }
    }
}
