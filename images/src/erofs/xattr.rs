//! Extended attributes: which names EROFS can hold, and their bytes behind an inode.
//!
//! Attributes are stored inline with each inode, never shared. Which attributes a layer may set is
//! decided in `images::layer`.

use std::collections::BTreeMap;

use super::format::{NAME_MAX, put16};

/// Size of the header in front of an inode's attributes.
const HEADER: usize = 12;
/// `i_xattr_icount` has 16 bits and counts 4-byte units behind the header.
const MAX_BODY: usize = HEADER + 4 * (u16::MAX as usize - 1);

/// A name that EROFS can hold: an index for the well-known prefix, and the rest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct XattrName {
    index: u8,
    rest: Box<[u8]>,
}

impl XattrName {
    /// Splits a full name (`user.note`). `None` when the name space is not one that EROFS has,
    /// or when nothing, or more than 255 bytes, or a NUL follows the prefix.
    pub fn parse(name: &[u8]) -> Option<Self> {
        // POSIX ACLs are whole names; the others are prefixes.
        let (index, rest): (u8, &[u8]) = match name {
            b"system.posix_acl_access" => (2, b""),
            b"system.posix_acl_default" => (3, b""),
            _ => {
                let (index, rest) = [(1, &b"user."[..]), (4, b"trusted."), (6, b"security.")]
                    .into_iter()
                    .find_map(|(index, prefix)| Some((index, name.strip_prefix(prefix)?)))?;
                if rest.is_empty() {
                    return None;
                }
                (index, rest)
            }
        };
        if rest.len() > NAME_MAX || rest.contains(&0) {
            return None;
        }
        Some(Self {
            index,
            rest: rest.into(),
        })
    }

    /// The name in full.
    pub fn full(&self) -> Vec<u8> {
        let prefix: &[u8] = match self.index {
            1 => b"user.",
            2 => b"system.posix_acl_access",
            3 => b"system.posix_acl_default",
            4 => b"trusted.",
            _ => b"security.",
        };
        [prefix, &self.rest].concat()
    }
}

/// The extended attributes of one inode, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Xattrs {
    map: BTreeMap<XattrName, Box<[u8]>>,
    /// Size of the entries when encoded.
    bytes: usize,
}

impl Xattrs {
    /// Sets one attribute; `false` when the value (64 KiB - 1) or all of them together (256 KiB)
    /// are more than the format holds: then nothing is changed.
    pub fn set(&mut self, name: XattrName, value: &[u8]) -> bool {
        let old = self.map.get(&name).map_or(0, |old| entry_size(&name, old));
        let bytes = self.bytes - old + entry_size(&name, value);
        if u16::try_from(value.len()).is_err() || HEADER + bytes > MAX_BODY {
            return false;
        }
        self.bytes = bytes;
        self.map.insert(name, value.into());
        true
    }

    /// Bytes of all names and values, as stored.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&XattrName, &[u8])> {
        self.map.iter().map(|(name, value)| (name, &**value))
    }

    /// Bytes that [`Self::encode`] appends.
    pub(super) fn encoded_len(&self) -> usize {
        if self.map.is_empty() {
            0
        } else {
            HEADER + self.bytes
        }
    }

    /// `i_xattr_icount`: 0 for none, else one for the header and one per 4 bytes.
    pub(super) fn count(&self) -> u16 {
        if self.map.is_empty() {
            return 0;
        }
        // `set` keeps the sum below the limit, so the conversion cannot fail.
        u16::try_from(1 + self.bytes / 4).unwrap_or(u16::MAX)
    }

    /// Appends the header and the entries; nothing for none.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        if self.map.is_empty() {
            return;
        }
        out.extend_from_slice(&[0; HEADER]);
        let start = out.len();
        for (name, value) in &self.map {
            out.push(u8::try_from(name.rest.len()).unwrap_or(u8::MAX));
            out.push(name.index);
            put16(out, u16::try_from(value.len()).unwrap_or(u16::MAX));
            out.extend_from_slice(&name.rest);
            out.extend_from_slice(value);
            out.resize(start + (out.len() - start).next_multiple_of(4), 0);
        }
    }
}

fn entry_size(name: &XattrName, value: &[u8]) -> usize {
    (4 + name.rest.len() + value.len()).next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["user.a", "trusted.overlay.opaque", "security.capability"] {
            assert_eq!(
                XattrName::parse(name.as_bytes()).unwrap().full(),
                name.as_bytes()
            );
        }
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(
                XattrName::parse(name.as_bytes()).unwrap().full(),
                name.as_bytes()
            );
        }
        let long = format!("user.{}", "x".repeat(256));
        for name in [
            "",
            "user.",
            "user",
            "system.other",
            "com.apple.x",
            "user.a\0b",
            &long,
        ] {
            assert_eq!(XattrName::parse(name.as_bytes()), None, "{name}");
        }
        assert!(XattrName::parse(&long.as_bytes()[..260]).is_some());
    }

    #[test]
    fn encoding_matches_its_length() {
        let mut x = Xattrs::default();
        assert!(x.set(XattrName::parse(b"user.a").unwrap(), b"12345"));
        assert!(x.set(XattrName::parse(b"security.capability").unwrap(), &[1; 20]));
        assert!(x.set(XattrName::parse(b"user.a").unwrap(), b""));
        let mut out = vec![9; 3];
        x.encode(&mut out);
        assert_eq!(out.len() - 3, x.encoded_len());
        assert_eq!(usize::from(x.count()), (x.encoded_len() - 12) / 4 + 1);
    }

    #[test]
    fn limits_hold() {
        let mut x = Xattrs::default();
        let name = |n: u32| XattrName::parse(format!("user.{n}").as_bytes()).unwrap();
        assert!(!x.set(name(0), &[0; 65536]));
        for n in 0..3 {
            assert!(x.set(name(n), &[0; 65535]));
        }
        assert!(!x.set(name(3), &[0; 65535]));
        assert!(x.set(name(3), &[0; 65000]));
        assert!(!x.set(name(4), &[0; 65535]));
        assert_eq!(x.iter().count(), 4);
    }
}
