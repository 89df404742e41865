//! The loopback device. By the old ioctl and not by netlink: at this point of the boot there is no
//! runtime yet, and two system calls are all it takes.

use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Sets `lo` up; the kernel gives it its addresses.
///
/// # Errors
/// If the kernel refuses.
pub fn up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq is an array of characters and a union of integers and pointers that nothing reads;
    // all zeros is a valid value of each.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads an ifreq at the pointer, which is valid for the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
