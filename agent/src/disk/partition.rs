//! Parts of a disk as block devices of their own: partitions, which need no table on the disk.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// linux/blkpg.h
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;
/// Bytes that partitions begin and end at multiples of.
const SECTOR: u64 = 512;
/// The most partitions of a disk (`DISK_MAX_PARTS`, of which one stands for the whole).
pub const MAX_PARTITIONS: u32 = 255;

/// `struct blkpg_partition`.
#[repr(C)]
struct Partition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct Argument {
    operation: libc::c_int,
    flags: libc::c_int,
    data_length: libc::c_int,
    data: *const Partition,
}

/// Where a part of a disk is, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    start: u64,
    length: u64,
}

impl Range {
    /// Whole sectors, with an end that a disk can have.
    pub fn new(start: u64, length: u64) -> Option<Self> {
        let end = start.checked_add(length)?;
        let whole = start.is_multiple_of(SECTOR) && length.is_multiple_of(SECTOR);
        (whole && length > 0 && i64::try_from(end).is_ok()).then_some(Self { start, length })
    }
}

/// Makes a partition of an open disk. Its device node is there when this returns: devtmpfs makes it
/// with the device.
///
/// # Errors
/// EBUSY if there is one of this number, or one that overlaps; EINVAL beyond the disk's end.
pub fn add(disk: &File, number: u32, range: Range) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let partition = Partition {
        start: i64::try_from(range.start).map_err(invalid)?,
        length: i64::try_from(range.length).map_err(invalid)?,
        number: i32::try_from(number).map_err(invalid)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = Argument {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        data_length: i32::try_from(size_of::<Partition>()).map_err(io::Error::other)?,
        data: &raw const partition,
    };
    // SAFETY: BLKPG reads a blkpg_ioctl_arg at the pointer and a blkpg_partition where that points to;
    // both are laid out as such and live over the call.
    if unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const argument) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The device node of a partition, as the kernel names it: `vdb1`, and `nvme0n1p1` after a digit.
pub fn node(disk: &Path, number: u32) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    if name
        .as_encoded_bytes()
        .last()
        .is_some_and(u8::is_ascii_digit)
    {
        name.push("p");
    }
    name.push(number.to_string());
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Partition>(), 152);
        assert_eq!(size_of::<Argument>(), 24);
    }

    #[test]
    fn ranges_are_whole_sectors_of_a_disk() {
        assert!(Range::new(0, 512).is_some());
        assert!(Range::new(4096, 8192).is_some());
        let most = u64::try_from(i64::MAX).unwrap() / 512 * 512;
        assert!(Range::new(most - 512, 512).is_some());
        for (start, length) in [
            (0, 0),
            (1, 512),
            (512, 513),
            (most, 512),
            (u64::MAX - 511, 512),
            (512, u64::MAX - 511),
        ] {
            assert_eq!(Range::new(start, length), None, "{start} {length}");
        }
    }

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        assert_eq!(node(Path::new("/dev/vdb"), 1), Path::new("/dev/vdb1"));
        assert_eq!(node(Path::new("/dev/vdaa"), 255), Path::new("/dev/vdaa255"));
        assert_eq!(node(Path::new("/dev/loop7"), 3), Path::new("/dev/loop7p3"));
    }
}
