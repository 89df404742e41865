//! The kernel's entropy pool.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The most one call adds; the pool is 256 bits wide, so more gains nothing.
const MAX: usize = 512;

// uapi/linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07).
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// struct rand_pool_info with room for the most one call adds.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MAX],
}

/// Adds a seed and credits it, and has the generator use it at once: two pods that start as copies
/// of one template must not draw the same numbers.
///
/// # Errors
/// If the kernel refuses.
pub fn add(seed: &[u8]) -> io::Result<()> {
    let device = File::options().write(true).open("/dev/random")?;
    let mut info = PoolInfo {
        entropy_bits: 0,
        size: 0,
        bytes: [0; MAX],
    };
    let length = seed.len().min(MAX);
    for (to, from) in info.bytes.iter_mut().zip(seed) {
        *to = *from;
    }
    info.size = i32::try_from(length).unwrap_or(0);
    info.entropy_bits = info.size * 8;
    // SAFETY: the kernel reads a rand_pool_info and `size` bytes behind it; `info` is laid out as one, and
    // `size` is at most the length of its `bytes`.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: RNDRESEEDCRNG takes no argument; the descriptor is open.
    if unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
