//! vhost-net: the rings handed to the kernel (linux/vhost.h), by a descriptor of /dev/vhost-net.
//!
//! The kernel takes the driver's kicks and gives its interrupts itself. Stopping it gives back
//! where each ring stands, so that pause, snapshot and the change to the VMM's own back end work.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::GuestMemory;
use crate::virtio::queue::{Active, Ring};

// linux/vhost.h
const VHOST_GET_FEATURES: libc::Ioctl = 0x8008_af00_u32 as libc::Ioctl;
const VHOST_SET_FEATURES: libc::Ioctl = 0x4008_af00;
const VHOST_SET_OWNER: libc::Ioctl = 0xaf01;
const VHOST_SET_MEM_TABLE: libc::Ioctl = 0x4008_af03;
const VHOST_SET_VRING_NUM: libc::Ioctl = 0x4008_af10;
const VHOST_SET_VRING_ADDR: libc::Ioctl = 0x4028_af11;
const VHOST_SET_VRING_BASE: libc::Ioctl = 0x4008_af12;
const VHOST_GET_VRING_BASE: libc::Ioctl = 0xc008_af12_u32 as libc::Ioctl;
const VHOST_SET_VRING_KICK: libc::Ioctl = 0x4008_af20;
const VHOST_SET_VRING_CALL: libc::Ioctl = 0x4008_af21;
const VHOST_NET_SET_BACKEND: libc::Ioctl = 0x4008_af30;

#[repr(C)]
struct VringState {
    index: u32,
    num: u32,
}

#[repr(C)]
struct VringFile {
    index: u32,
    fd: i32,
}

#[repr(C)]
struct VringAddr {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Region {
    guest: u64,
    size: u64,
    host: u64,
    padding: u64,
}

/// The most regions we describe; guest RAM has two.
const MAX_REGIONS: usize = 8;

#[repr(C)]
struct Memory {
    count: u32,
    padding: u32,
    regions: [Region; MAX_REGIONS],
}

/// An open vhost-net.
#[derive(Debug)]
pub struct Vhost {
    fd: OwnedFd,
    owned: bool,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

impl Vhost {
    /// Over a descriptor of /dev/vhost-net.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Vhost { fd, owned: false }
    }

    /// # Safety
    /// `T` is the structure that `request` reads or writes, or longer.
    unsafe fn ioctl<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        let argument = std::ptr::from_mut(argument);
        // SAFETY: a live, exclusive reference to what the kernel takes for this request: that `T`
        // is that structure is this function's own precondition.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The features the kernel's side knows.
    ///
    /// # Errors
    /// The system's.
    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0u64;
        // SAFETY: writes one u64.
        unsafe { self.ioctl(VHOST_GET_FEATURES, &mut features) }?;
        Ok(features)
    }

    /// Hands all rings of `active` to the kernel, on `tap`.
    ///
    /// # Errors
    /// The system's; then nothing runs.
    pub fn start(&mut self, active: &Active, tap: RawFd) -> io::Result<()> {
        if !self.owned {
            // SAFETY: takes no argument.
            unsafe { self.ioctl(VHOST_SET_OWNER, &mut 0u8) }?;
            self.owned = true;
        }
        let mut features = active.features & self.features()?;
        // SAFETY: reads one u64.
        unsafe { self.ioctl(VHOST_SET_FEATURES, &mut features) }?;
        self.set_memory(&active.mem)?;
        for ring in &active.rings {
            self.set_up(ring, active)?;
        }
        for ring in &active.rings {
            if let Err(e) = self.set_backend(ring.index, tap) {
                for earlier in &active.rings {
                    let _ = self.set_backend(earlier.index, -1);
                }
                return Err(e);
            }
        }
        Ok(())
    }

    /// Takes the rings back; they stand where the kernel left them.
    ///
    /// # Errors
    /// The system's.
    pub fn stop(&mut self, active: &mut Active) -> io::Result<()> {
        for ring in &active.rings {
            // Waits for frames in flight, which are the host's matter and not the guest's.
            self.set_backend(ring.index, -1)?;
        }
        for ring in &mut active.rings {
            let mut state = VringState {
                index: u32::from(ring.index),
                num: 0,
            };
            // SAFETY: reads and writes one VringState.
            unsafe { self.ioctl(VHOST_GET_VRING_BASE, &mut state) }?;
            let next = u16::try_from(state.num & 0xffff).unwrap_or(0);
            ring.queue.set_next_avail(next);
            let used = ring
                .queue
                .used_idx(&*active.mem, std::sync::atomic::Ordering::Acquire)
                .map_err(|_| invalid("the used ring is not in guest memory"))?;
            ring.queue.set_next_used(used.0);
        }
        Ok(())
    }

    fn set_backend(&self, index: u16, fd: RawFd) -> io::Result<()> {
        let mut file = VringFile {
            index: u32::from(index),
            fd,
        };
        // SAFETY: reads one VringFile.
        unsafe { self.ioctl(VHOST_NET_SET_BACKEND, &mut file) }
    }

    fn set_memory(&self, mem: &GuestMemory) -> io::Result<()> {
        let none = Region {
            guest: 0,
            size: 0,
            host: 0,
            padding: 0,
        };
        let mut table = Memory {
            count: 0,
            padding: 0,
            regions: [none; MAX_REGIONS],
        };
        let count = mem.num_regions();
        if count > MAX_REGIONS {
            return Err(invalid("more regions of guest memory than expected"));
        }
        for (entry, region) in table.regions.iter_mut().zip(mem.iter()) {
            *entry = Region {
                guest: region.start_addr().0,
                size: region.len(),
                host: region.as_ptr() as u64,
                padding: 0,
            };
        }
        table.count = u32::try_from(count).unwrap_or(0);
        // SAFETY: reads the head and `count` regions of the table. The kernel works in these regions
        // until the rings are taken back (`stop`) or the descriptor is closed; they stay mapped as
        // long as the device's `Active`, which ends after that.
        unsafe { self.ioctl(VHOST_SET_MEM_TABLE, &mut table) }
    }

    fn set_up(&self, ring: &Ring, active: &Active) -> io::Result<()> {
        let index = u32::from(ring.index);
        let size = ring.queue.size();
        let host = |address: u64, len: usize| {
            active
                .mem
                .get_slice(GuestAddress(address), len)
                .map(|s| s.ptr_guard().as_ptr() as u64)
                .map_err(|_| invalid("a ring is not in one piece of guest memory"))
        };
        let entries = usize::from(size);
        let mut address = VringAddr {
            index,
            flags: 0,
            desc: host(ring.queue.desc_table(), 16 * entries)?,
            used: host(ring.queue.used_ring(), 6 + 8 * entries)?,
            avail: host(ring.queue.avail_ring(), 6 + 2 * entries)?,
            log: 0,
        };
        let state = |num: u16| VringState {
            index,
            num: u32::from(num),
        };
        let call = active.interrupt.queue_eventfd(ring.index);
        let file = |fd: RawFd| VringFile { index, fd };
        // SAFETY: each reads one structure of the type it is given; the addresses in it are checked
        // to be in guest memory, which the kernel reaches through its own table (`set_memory`).
        unsafe {
            self.ioctl(VHOST_SET_VRING_NUM, &mut state(size))?;
            self.ioctl(VHOST_SET_VRING_BASE, &mut state(ring.queue.next_avail()))?;
            self.ioctl(VHOST_SET_VRING_ADDR, &mut address)?;
            self.ioctl(VHOST_SET_VRING_KICK, &mut file(ring.kick().as_raw_fd()))?;
            // No vector, no interrupt: -1 silences it.
            let call = call.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            self.ioctl(VHOST_SET_VRING_CALL, &mut file(call))?;
        }
        Ok(())
    }
}
