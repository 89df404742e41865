//! The kernel's announcements of devices (NETLINK_KOBJECT_UEVENT).

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;

use crate::async_fd;

/// The kernel's own messages, not those udev sends on.
const KERNEL_GROUP: u32 = 1;

/// A subscription.
#[derive(Debug)]
pub struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Opens it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self(async_fd::readable(socket)?))
    }

    /// Returns when a block device has come (or may have: lost messages count as one).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn block_device_added(&self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            let mut ready = self.0.readable().await?;
            match rustix::net::recv(self.0.get_ref(), &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    if adds_block_device(buffer.get(..length).unwrap_or_default()) {
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A message is `ACTION@PATH` and `NAME=value` strings, each ended by a zero.
fn adds_block_device(message: &[u8]) -> bool {
    let has = |wanted: &[u8]| {
        message
            .split(|byte| *byte == 0)
            .any(|field| field == wanted)
    };
    (has(b"ACTION=add") || has(b"ACTION=change")) && has(b"SUBSYSTEM=block")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_block_devices_count() {
        let disk = b"add@/devices/x/block/vdb\0ACTION=add\0DEVPATH=/d\0SUBSYSTEM=block\0SEQNUM=1\0";
        let net = b"add@/devices/x/net/eth1\0ACTION=add\0SUBSYSTEM=net\0";
        let gone = b"remove@/devices/x/block/vdb\0ACTION=remove\0SUBSYSTEM=block\0";
        assert!(adds_block_device(disk));
        assert!(!adds_block_device(net));
        assert!(!adds_block_device(gone));
        assert!(!adds_block_device(b""));
    }
}
