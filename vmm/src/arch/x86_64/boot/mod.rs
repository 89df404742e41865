//! Putting a kernel into guest memory, so that the first vCPU can enter it.
//!
//! The kernel is an ELF vmlinux, entered by the 64-bit boot protocol of Linux
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"): there is no firmware and no
//! decompressor, and the CPU starts in long mode with identity page tables. The registers that
//! go with it are in `super::entry`.

mod error;
mod params;
mod tables;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::arch::x86_64::layout;
use crate::memory::GuestMemory;

pub use error::BootError;
pub use params::{E820Entry, e820};
pub use tables::GDT_ENTRIES;

/// What the VMM itself puts on the command line. Each word has its reason:
/// - `console=ttyS0`: the only console; `quiet` and loglevel keep it silent unless something is
///   wrong, as every byte is an exit.
/// - `reboot=t` would skip ACPI; the default uses the reset register, so nothing is given.
/// - `panic=-1`: reboot at once, after pvpanic has reported it; the VM then ends.
/// - `maxcpus=1`: the others are brought up by the agent.
/// - `noreplace-smp`: a kernel that boots on one processor patches the lock prefixes out of all its
///   code, an eighth of its boot, and back in when the agent brings up the second.
/// - `random.trust_cpu=on`: RDRAND may seed; virtio-rng follows.
/// - `cryptomgr.notests`: no self-tests at boot.
/// - `nf_conntrack.hashsize=16384`: 128 KiB of buckets for connection tracking, where a small guest
///   would have a tenth; to change them later takes an RCU grace period.
/// - `8250.nr_uarts=1`: one serial port to look at.
/// - `memory_hotplug.online_policy=auto-movable`: added memory is for what can be moved, so that it
///   can be taken back, as long as the kernel keeps a quarter of all for itself.
const BASE_CMDLINE: &str = "console=ttyS0 quiet panic=-1 maxcpus=1 noreplace-smp random.trust_cpu=on \
                            cryptomgr.notests nf_conntrack.hashsize=16384 8250.nr_uarts=1 \
                            memory_hotplug.online_policy=auto-movable";

/// The whole command line: the VMM's words, then `extra`, whose words win.
///
/// # Errors
/// When it does not fit or holds bytes a command line cannot.
pub fn cmdline(extra: &str) -> Result<String, BootError> {
    let whole = if extra.is_empty() {
        BASE_CMDLINE.into()
    } else {
        format!("{BASE_CMDLINE} {extra}")
    };
    if whole.len() + 1 > layout::CMDLINE_MAX {
        return Err(BootError::Cmdline(format!(
            "has {} bytes; the limit is {}",
            whole.len(),
            layout::CMDLINE_MAX - 1
        )));
    }
    if let Some(bad) = whole.bytes().find(|b| !(0x20..0x7f).contains(b)) {
        return Err(BootError::Cmdline(format!(
            "holds the byte {bad:#04x}; printable ASCII is wanted"
        )));
    }
    Ok(whole)
}

/// Loads kernel, initramfs and command line, and the tables the first vCPU starts with.
/// Returns the entry address.
///
/// # Errors
/// When something is not what it should be or does not fit.
pub fn load(
    mem: &GuestMemory,
    kernel: &mut File,
    initramfs: Option<&mut File>,
    cmdline: &str,
    rsdp: u64,
) -> Result<u64, BootError> {
    let start = GuestAddress(layout::HIGH_RAM_START);
    let loaded = Elf::load(mem, None, kernel, Some(start)).map_err(BootError::Kernel)?;
    let low_ram = low_ram_end(mem);
    if loaded.kernel_end > low_ram {
        return Err(BootError::KernelTooLarge {
            end: loaded.kernel_end,
            memory: low_ram,
        });
    }
    let ramdisk = match initramfs {
        Some(file) => load_initramfs(mem, file, loaded.kernel_end, low_ram)?,
        None => (0, 0),
    };
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    mem.write_slice(&bytes, GuestAddress(layout::CMDLINE))
        .map_err(|source| BootError::Write {
            what: "the command line",
            source,
        })?;
    params::write(mem, cmdline.len(), ramdisk, rsdp)?;
    tables::write(mem)?;
    Ok(loaded.kernel_load.0)
}

/// Where RAM below the hole ends.
fn low_ram_end(mem: &GuestMemory) -> u64 {
    mem.iter().next().map_or(0, GuestMemoryRegion::len)
}

/// Puts the initramfs at the end of low RAM, page-aligned. Returns address and size.
fn load_initramfs(
    mem: &GuestMemory,
    file: &mut File,
    kernel_end: u64,
    low_ram: u64,
) -> Result<(u64, u64), BootError> {
    let size = file.seek(SeekFrom::End(0)).map_err(BootError::Initramfs)?;
    file.rewind().map_err(BootError::Initramfs)?;
    let too_large = BootError::InitramfsTooLarge { size, kernel_end };
    let Some(address) = low_ram.checked_sub(size).map(|a| a & !0xfff) else {
        return Err(too_large);
    };
    if address < kernel_end {
        return Err(too_large);
    }
    let len =
        usize::try_from(size).map_err(|_| BootError::InitramfsTooLarge { size, kernel_end })?;
    let mut take = file.take(size);
    mem.read_exact_volatile_from(GuestAddress(address), take.get_mut(), len)
        .map_err(|source| BootError::Write {
            what: "the initramfs",
            source,
        })?;
    Ok((address, size))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::memory;

    #[test]
    fn cmdline_puts_the_callers_words_last_and_checks_them() {
        assert_eq!(cmdline("").unwrap(), BASE_CMDLINE);
        assert!(cmdline("loglevel=8").unwrap().ends_with(" loglevel=8"));
        assert!(matches!(cmdline("a\nb"), Err(BootError::Cmdline(_))));
        assert!(matches!(cmdline("a\0"), Err(BootError::Cmdline(_))));
        assert!(matches!(
            cmdline(&"x".repeat(layout::CMDLINE_MAX)),
            Err(BootError::Cmdline(_))
        ));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let mem = memory::anonymous(32 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        for content in [
            &b""[..],
            b"#!/bin/sh\n",
            &[0x7f, b'E', b'L', b'F'],
            &[0u8; 4096],
        ] {
            file.set_len(0).unwrap();
            file.rewind().unwrap();
            file.write_all(content).unwrap();
            let err = load(&mem, &mut file, None, "", 0).unwrap_err();
            assert!(matches!(err, BootError::Kernel(_)), "{err}");
        }
    }

    #[test]
    fn an_initramfs_lies_at_the_end_or_is_refused() {
        let mem = memory::anonymous(4 << 20).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7u8; 5000]).unwrap();
        let (at, size) = load_initramfs(&mem, &mut file, 1 << 20, 4 << 20).unwrap();
        assert_eq!((at, size), ((4 << 20) - 8192, 5000));
        assert_eq!(mem.read_obj::<u8>(GuestAddress(at + 4999)).unwrap(), 7);
        assert_eq!(mem.read_obj::<u8>(GuestAddress(at + 5000)).unwrap(), 0);
        let err = load_initramfs(&mem, &mut file, (4 << 20) - 4096, 4 << 20).unwrap_err();
        assert!(matches!(err, BootError::InitramfsTooLarge { .. }));
        file.set_len(5 << 20).unwrap();
        let err = load_initramfs(&mem, &mut file, 0, 4 << 20).unwrap_err();
        assert!(matches!(err, BootError::InitramfsTooLarge { .. }));
    }
}
