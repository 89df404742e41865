//! File systems in files, for pods on the host: a loop device that goes with its last user, so that
//! nothing has to be taken down after the mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// linux/loop.h
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Others take loop devices too: between finding a free one and taking it, it may be gone.
const TRIES: u32 = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A loop device, for as long as the value lives or it is mounted.
#[derive(Debug)]
pub struct Loop {
    node: PathBuf,
    // The device clears itself when the last descriptor and the last mount are gone.
    _open: File,
}

impl Loop {
    /// Puts a file behind a free device.
    ///
    /// # Errors
    /// If there is no such file, or no free loop device.
    pub fn attach(file: &Path, read_only: bool) -> io::Result<Self> {
        let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(|error| named("opening /dev/loop-control", &error))?;
        for _ in 0..TRIES {
            // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(named(
                    "finding a free loop device",
                    &io::Error::last_os_error(),
                ));
            }
            let node = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&node);
            let device =
                device.map_err(|error| named(&format!("opening {}", node.display()), &error))?;
            match configure(&device, backing.as_raw_fd(), read_only) {
                Ok(()) => {
                    return Ok(Self {
                        node,
                        _open: device,
                    });
                }
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => {
                    let what = format!("putting the file behind {}", node.display());
                    return Err(named(&what, &error));
                }
            }
        }
        Err(io::Error::other(
            "no loop device could be taken: others were always faster",
        ))
    }

    /// Its device node.
    pub fn node(&self) -> &Path {
        &self.node
    }
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn configure(device: &File, backing: RawFd, read_only: bool) -> io::Result<()> {
    let flags = match read_only {
        true => LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
        false => LO_FLAGS_AUTOCLEAR,
    };
    let config = Config {
        fd: u32::try_from(backing).map_err(io::Error::other)?,
        // The default.
        block_size: 0,
        info: Info {
            numbers: [0; 5],
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads a loop_config at the pointer; `Config` is laid out as one and lives
    // over the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Config>(), 304);
    }
}
