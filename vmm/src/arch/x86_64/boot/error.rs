//! What keeps a kernel from being put into guest memory.

use std::io;

/// Why a kernel could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is not a kernel that can be entered.
    #[error("loading the guest kernel: {0}; an uncompressed x86-64 ELF vmlinux is wanted")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The kernel needs more memory than the guest has.
    #[error("the guest kernel ends at {end:#x}, beyond the guest's {memory:#x} bytes below 4 GiB")]
    KernelTooLarge {
        /// Where it ends.
        end: u64,
        /// What there is.
        memory: u64,
    },
    /// The initramfs does not fit beside the kernel.
    #[error(
        "an initramfs of {size} bytes does not fit beside a kernel that ends at {kernel_end:#x}"
    )]
    InitramfsTooLarge {
        /// Its size.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
    },
    /// The initramfs could not be read.
    #[error("reading the initramfs: {0}")]
    Initramfs(#[source] io::Error),
    /// The command line is too long, or not plain text.
    #[error("the kernel command line {0}")]
    Cmdline(String),
    /// Writing to guest memory failed.
    #[error("writing {what} to guest memory: {source}")]
    Write {
        /// What was written.
        what: &'static str,
        /// The memory's answer.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}
