//! A tap device given by descriptor: the ioctls the VMM may still make on it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

use super::header::HEADER;

// linux/if_tun.h
const TUNGETIFF: libc::Ioctl = 0x8004_54d2_u32 as libc::Ioctl;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;
const TUN_F_TSO_ECN: libc::c_ulong = 8;

/// `struct ifreq`, as far as TUNGETIFF fills it.
#[repr(C)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// An open tap.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Checks that `fd` is a tap with virtio headers, and makes it non-blocking.
    ///
    /// # Errors
    /// `InvalidInput` when it is something else, or the system's.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut request = IfReq {
            name: [0; 16],
            flags: 0,
            rest: [0; 22],
        };
        // SAFETY: TUNGETIFF fills one struct ifreq (40 bytes), which `request` is.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let wanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if request.flags & wanted != wanted {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
            ));
        }
        let size = libc::c_int::try_from(HEADER).unwrap_or(12);
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Tap(File::from(fd)))
    }

    /// Tells the host what it may leave to the guest, by what was negotiated.
    ///
    /// # Errors
    /// The system's.
    pub fn set_offloads(&self, features: u64) -> io::Result<()> {
        let mut offloads = 0;
        let has = |bit: u32| features.checked_shr(bit).unwrap_or(0) & 1 == 1;
        if has(VIRTIO_NET_F_GUEST_CSUM) {
            offloads |= TUN_F_CSUM;
            for (bit, offload) in [
                (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
                (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
            ] {
                if has(bit) {
                    offloads |= offload;
                }
            }
            if has(VIRTIO_NET_F_GUEST_ECN) && offloads != TUN_F_CSUM {
                offloads |= TUN_F_TSO_ECN;
            }
        }
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        if unsafe { libc::ioctl(self.fd(), TUNSETOFFLOAD, offloads) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The descriptor's number.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// The descriptor.
    #[must_use]
    pub fn borrow(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
