//! Devices that the guest has made in the share. Pure.
//!
//! On the host each is an empty regular file with a mode that hardly any other file has, and an
//! extended attribute that describes the device; the host's kernel never treats it as one. The attribute
//! is read only for files with that mode, so others cost nothing. Opening a device is up to the guest's
//! kernel, and does not reach this server.
//!
//! A character device 0:0 is a whiteout of overlayfs, which no kernel opens: it is made as it is.

use rustix::fs::{FileType, Statx};

/// The mode of the file on the host: read and written by its owner alone, and the sticky bit, which
/// means nothing on a file.
pub const MODE: u32 = 0o1600;
/// The longest value.
pub const MAX_VALUE: usize = 64;

/// A device as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// A block device, else a character device.
    pub block: bool,
    /// Of the device.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
}

/// Whether a file may stand for a device.
#[must_use]
pub fn is_candidate(stat: &Statx) -> bool {
    let mode = u32::from(stat.stx_mode);
    mode == libc::S_IFREG | MODE && stat.stx_size == 0
}

impl Device {
    /// What MKNOD asks for, if it is one; `number` is the kernel's 32-bit form (`new_encode_dev`).
    #[must_use]
    pub fn asked(mode: u32, number: u32) -> Option<Self> {
        let block = match FileType::from_raw_mode(mode) {
            FileType::BlockDevice => true,
            FileType::CharacterDevice if number != 0 => false,
            _ => return None,
        };
        Some(Device {
            block,
            major: number >> 8 & 0xfff,
            minor: number & 0xff | number >> 12 & 0xf_ff00,
            mode: mode & 0o7777,
        })
    }

    /// The attribute's value: `c 1:3 0666`.
    #[must_use]
    pub fn to_value(self) -> String {
        let kind = if self.block { 'b' } else { 'c' };
        format!("{kind} {}:{} {:04o}", self.major, self.minor, self.mode)
    }

    /// Reads the attribute's value, in the one form it is written.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut words = text.split(' ');
        let block = match words.next()? {
            "b" => true,
            "c" => false,
            _ => return None,
        };
        let (major, minor) = words.next()?.split_once(':')?;
        let device = Device {
            block,
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            mode: u32::from_str_radix(words.next()?, 8).ok()?,
        };
        // Numbers within what the protocol carries, and no second way to write them.
        let known = device.major <= 0xfff && device.minor <= 0xf_ffff && device.mode <= 0o7777;
        (known && device.to_value() == text).then_some(device)
    }

    /// Changes what is said of the file on the host to what is said of the device.
    pub fn show(self, stat: &mut Statx) {
        let kind = match self.block {
            true => libc::S_IFBLK,
            false => libc::S_IFCHR,
        };
        // At most 16 bits.
        stat.stx_mode = u16::try_from(kind | self.mode).unwrap_or(0);
        (stat.stx_rdev_major, stat.stx_rdev_minor) = (self.major, self.minor);
        // What its attributes take up.
        stat.stx_blocks = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_devices_are() {
        let null = Device {
            block: false,
            major: 1,
            minor: 3,
            mode: 0o666,
        };
        assert_eq!(Device::asked(libc::S_IFCHR | 0o666, 0x103), Some(null));
        assert_eq!(null.to_value(), "c 1:3 0666");
        let block = Device::asked(libc::S_IFBLK | 0o660, 0x0010_0801).unwrap();
        assert_eq!((block.major, block.minor), (8, 0x101));
        assert!(Device::asked(libc::S_IFBLK, 0).is_some());
        // Whiteouts are.
        assert_eq!(Device::asked(libc::S_IFCHR, 0), None);
        for other in [libc::S_IFREG, libc::S_IFIFO, libc::S_IFSOCK, 0] {
            assert_eq!(Device::asked(other | 0o666, 0x103), None);
        }
    }

    #[test]
    fn only_the_one_form_is_read() {
        for bad in [
            "",
            "c",
            "c 1:3",
            "c 1:3 666",
            "d 1:3 0666",
            "c 1:3 0666 ",
            "c 1:3 0666 x",
            "c 1:3 10666",
            "c 4096:3 0666",
            "c 1:1048576 0666",
            "c 01:3 0666",
            "c +1:3 0666",
            "c -1:3 0666",
            "c 1:3 0868",
            "c  1:3 0666",
            "c 1:3\n0666",
        ] {
            assert_eq!(Device::parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(Device::parse(&[0xff, b' ']), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(block: bool, number: u32, mode in 0u32..0o10000) {
            let kind = if block { libc::S_IFBLK } else { libc::S_IFCHR };
            if let Some(device) = Device::asked(kind | mode, number) {
                let value = device.to_value();
                prop_assert!(value.len() <= MAX_VALUE);
                prop_assert_eq!(Device::parse(value.as_bytes()), Some(device));
            }
        }

        #[test]
        fn any_value_is_read_or_refused(value in "[bc]? ?[0-9+:]{0,9} ?[0-9]{0,5}") {
            if let Some(device) = Device::parse(value.as_bytes()) {
                prop_assert_eq!(device.to_value(), value);
            }
        }
    }
}
