//! The structures of FUSE's answers, as bytes. Pure.

use rustix::fs::{StatFs, Statx};

use super::abi::{self, OUT_HEADER};

/// Appends little-endian fields.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn zeros(&mut self, n: usize) -> &mut Self {
        self.0.resize(self.0.len() + n, 0);
        self
    }
}

/// `fuse_out_header` for an answer with `payload` bytes, or an error number.
#[must_use]
pub fn header(unique: u64, result: Result<usize, i32>) -> [u8; OUT_HEADER] {
    let (payload, error) = match result {
        Ok(payload) => (payload, 0),
        Err(errno) => (0, errno.saturating_neg()),
    };
    // Payloads are at most a MiB.
    let len = u32::try_from(OUT_HEADER + payload).unwrap_or(u32::MAX);
    let mut out = [0; OUT_HEADER];
    let fields = len
        .to_le_bytes()
        .into_iter()
        .chain(error.to_le_bytes())
        .chain(unique.to_le_bytes());
    for (to, from) in out.iter_mut().zip(fields) {
        *to = from;
    }
    out
}

/// `fuse_attr`. The inode number is the caller's, as it must be one of its kind in the guest.
pub fn attr(w: &mut Writer<'_>, ino: u64, stat: &Statx) {
    w.u64(ino).u64(stat.stx_size).u64(stat.stx_blocks);
    for time in [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime] {
        w.u64(time.tv_sec.cast_unsigned());
    }
    for time in [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime] {
        w.u32(time.tv_nsec);
    }
    w.u32(u32::from(stat.stx_mode))
        .u32(stat.stx_nlink)
        .u32(stat.stx_uid)
        .u32(stat.stx_gid)
        .u32(device(stat.stx_rdev_major, stat.stx_rdev_minor))
        .u32(stat.stx_blksize)
        .u32(0);
}

/// The kernel's 32-bit form of a device number (`new_encode_dev`).
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & !0xff) << 12)
}

/// `fuse_entry_out`: nothing of it may be kept, whatever the host does is seen at the next look.
pub fn entry(w: &mut Writer<'_>, node: u64, ino: u64, stat: &Statx) {
    w.u64(node).u64(0).zeros(24);
    attr(w, ino, stat);
}

/// `fuse_attr_out`.
pub fn attr_out(w: &mut Writer<'_>, ino: u64, stat: &Statx) {
    w.zeros(16);
    attr(w, ino, stat);
}

/// `fuse_statx_out`.
pub fn statx_out(w: &mut Writer<'_>, ino: u64, stat: &Statx) {
    // STATX_BASIC_STATS and STATX_BTIME, where the host's file system has it.
    let mask = stat.stx_mask & 0xfff;
    w.zeros(32);
    w.u32(mask).u32(stat.stx_blksize).u64(0);
    w.u32(stat.stx_nlink).u32(stat.stx_uid).u32(stat.stx_gid);
    w.u16(stat.stx_mode).zeros(2);
    w.u64(ino).u64(stat.stx_size).u64(stat.stx_blocks).u64(0);
    for time in [
        &stat.stx_atime,
        &stat.stx_btime,
        &stat.stx_ctime,
        &stat.stx_mtime,
    ] {
        w.u64(time.tv_sec.cast_unsigned()).u32(time.tv_nsec).u32(0);
    }
    w.u32(stat.stx_rdev_major).u32(stat.stx_rdev_minor);
    w.zeros(8 + 14 * 8);
}

/// `fuse_open_out`.
pub fn open(w: &mut Writer<'_>, handle: u64, flags: u32) {
    w.u64(handle).u32(flags).u32(0);
}

/// `fuse_kstatfs`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes and lengths that are small and positive, in the types of statfs(2)"
)]
pub fn statfs(w: &mut Writer<'_>, stat: &StatFs) {
    w.u64(stat.f_blocks)
        .u64(stat.f_bfree)
        .u64(stat.f_bavail)
        .u64(stat.f_files)
        .u64(stat.f_ffree)
        .u32(stat.f_bsize as u32)
        .u32(stat.f_namelen as u32)
        .u32(stat.f_frsize as u32)
        .zeros(4 + 24);
}

/// `fuse_init_out`.
pub fn init(w: &mut Writer<'_>, max_readahead: u32, flags: u64, max_write: u32, max_pages: u16) {
    let (low, high) = (flags & u64::from(u32::MAX), flags >> 32);
    w.u32(abi::VERSION).u32(abi::MINOR).u32(max_readahead);
    w.u32(u32::try_from(low).unwrap_or(0));
    // How many background requests the guest has in flight, and from when on it holds back.
    w.u16(64).u16(48);
    w.u32(max_write).u32(1).u16(max_pages).u16(0);
    w.u32(u32::try_from(high).unwrap_or(0)).zeros(28);
}

/// Bytes of one `fuse_dirent` with a name of `name` bytes.
#[must_use]
pub fn dirent_len(name: usize) -> usize {
    (24 + name).next_multiple_of(8)
}

/// `fuse_dirent`.
pub fn dirent(w: &mut Writer<'_>, ino: u64, next: u64, kind: u32, name: &[u8]) {
    let len = u32::try_from(name.len()).unwrap_or(0);
    w.u64(ino).u64(next).u32(len).u32(kind);
    w.0.extend_from_slice(name);
    let pad = dirent_len(name.len()) - 24 - name.len();
    w.zeros(pad);
}
