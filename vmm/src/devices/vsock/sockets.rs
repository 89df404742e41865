//! The few things about Unix sockets that the standard library does not do.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use vmm_sys_util::eventfd::EventFd;

/// A descriptor to give up when descriptors have run out.
pub fn spare() -> io::Result<EventFd> {
    EventFd::new(libc::EFD_CLOEXEC)
}

/// Where a listener for host port `port` is.
pub fn port_path(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!("_{port}"));
    PathBuf::from(name)
}

/// Connects without ever waiting: a listener whose queue is full counts as none.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&fd, &address)?;
    Ok(UnixStream::from(fd))
}
