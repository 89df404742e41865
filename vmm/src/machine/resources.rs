//! From descriptor numbers to owned descriptors, and from those to devices.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use bulkhead_contract::vmm::{Config, Fs};
use rustix::fs::{Mode, OFlags};

use super::error::MachineError;
use crate::devices::balloon::BalloonDevice;
use crate::devices::block::{BlockConfig, BlockDevice, EngineKind, Part};
use crate::devices::fs::{FsConfig, FsDevice, Limits, Server, Workers};
use crate::devices::net::{NetConfig, NetDevice};
use crate::devices::rng::RngDevice;
use crate::devices::vsock::{VsockConfig, VsockDevice};
use crate::jail;
use crate::virtio::device::VirtioDevice;

/// Takes descriptor `fd`, which this process inherited for this purpose.
///
/// # Errors
/// When it is not open.
pub fn take(fd: RawFd, what: &'static str) -> Result<OwnedFd, MachineError> {
    // SAFETY: asks for flags only; a number that is not an open descriptor gives an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        let source = std::io::Error::last_os_error();
        return Err(MachineError::Descriptor { fd, what, source });
    }
    // SAFETY: it is open, and the configuration names every descriptor once, so that nothing
    // else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The descriptors of one VM.
#[derive(Debug)]
pub struct Resources {
    /// /dev/kvm.
    pub kvm: OwnedFd,
    /// The kernel.
    pub kernel: Option<File>,
    /// The initramfs.
    pub initramfs: Option<File>,
    /// State file and memory file.
    pub restore: Option<(File, File)>,
    /// What devices are made from, in the order they are on the bus.
    pub devices: Vec<Source>,
}

impl Resources {
    /// Takes every descriptor `config` names, but for the jail's. `descriptors` is /proc/self/fd,
    /// for the file server. Its threads start here, before any other, as they keep capabilities
    /// that no other gets.
    ///
    /// # Errors
    /// When one is not open, or the share cannot be served.
    pub fn take(config: &Config, descriptors: Option<OwnedFd>) -> Result<Self, MachineError> {
        let file = |fd, what| take(fd, what).map(File::from);
        let mut devices = vec![Source::Rng, Source::Balloon];
        if let Some(vsock) = &config.vsock {
            devices.push(Source::Vsock(VsockConfig {
                cid: vsock.cid,
                path: vsock.path.clone(),
            }));
        }
        if let Some(fs) = &config.fs {
            devices.push(Source::Fs(file_server(config, fs, descriptors)?));
        }
        for net in &config.nets {
            devices.push(Source::Net(NetConfig {
                id: net.id.clone(),
                tap: take(net.tap_fd, "a tap")?,
                vhost: net.vhost_fd.map(|fd| take(fd, "vhost-net")).transpose()?,
                mac: net.mac.0,
                mtu: net.mtu,
                queue_size: net.queue_size,
            }));
        }
        for disk in &config.disks {
            let disk_file = file(disk.fd, "a disk")?;
            devices.push(Source::disk(
                &disk.id,
                vec![disk_file.into()],
                disk.read_only,
                disk.queues,
            ));
        }
        let restore = match &config.restore_fds {
            Some(fds) => Some((
                file(fds.state, "the state of the snapshot")?,
                file(fds.memory, "the memory of the snapshot")?,
            )),
            None => None,
        };
        Ok(Resources {
            kvm: take(config.kvm_fd, "/dev/kvm")?,
            kernel: config
                .kernel_fd
                .map(|fd| file(fd, "the kernel"))
                .transpose()?,
            initramfs: config
                .initramfs_fd
                .map(|fd| file(fd, "the initramfs"))
                .transpose()?,
            restore,
            devices,
        })
    }
}

fn file_server(
    config: &Config,
    fs: &Fs,
    descriptors: Option<OwnedFd>,
) -> Result<FsConfig, MachineError> {
    let shown = fs.share.display();
    let descriptors = descriptors.ok_or_else(|| {
        MachineError::Mismatch("a file server needs the directory of descriptors".into())
    })?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let share = rustix::fs::open(&fs.share, flags, Mode::empty())
        .map_err(|e| MachineError::io(format!("opening the share {shown}"))(e.into()))?;
    let limits = Limits {
        nodes: usize::try_from(fs.max_inodes).unwrap_or(usize::MAX),
        handles: usize::try_from(fs.max_handles).unwrap_or(usize::MAX),
    };
    let server = Server::new(share, descriptors, limits)
        .map_err(|e| MachineError::io(format!("looking at the share {shown}"))(e.into()))?;
    let jailed = config.jail.is_some();
    let workers = Workers::start(server, move || match jailed {
        true => jail::raise_file_capabilities().map_err(std::io::Error::other),
        false => {
            // Without a jail, and without being root, files are made as this process's user.
            let _ = jail::keep_capabilities();
            Ok(())
        }
    })
    .map_err(MachineError::io("starting the file server's threads"))?;
    Ok(FsConfig {
        tag: fs.tag.clone(),
        workers,
    })
}

/// What one device is made from.
#[derive(Debug)]
pub enum Source {
    /// The entropy device.
    Rng,
    /// The balloon, for free page reporting.
    Balloon,
    /// vsock.
    Vsock(VsockConfig),
    /// The file server.
    Fs(FsConfig),
    /// A network device.
    Net(NetConfig),
    /// A disk.
    Disk(BlockConfig),
}

impl Source {
    /// A disk.
    #[must_use]
    pub fn disk(id: &str, parts: Vec<Part>, read_only: bool, queues: u16) -> Self {
        let engine = EngineKind::default();
        Source::Disk(BlockConfig {
            id: id.to_owned(),
            parts,
            read_only,
            queues,
            engine,
        })
    }

    /// The id the device will have.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Source::Rng => "rng",
            Source::Balloon => "balloon",
            Source::Vsock(_) => "vsock",
            Source::Fs(_) => "fs",
            Source::Net(net) => &net.id,
            Source::Disk(disk) => &disk.id,
        }
    }

    /// A new device, or with `saved` one that continues from there.
    ///
    /// # Errors
    /// The device's.
    pub fn into_device(
        self,
        saved: Option<&serde_json::Value>,
    ) -> Result<Box<dyn VirtioDevice>, MachineError> {
        let id = self.id().to_owned();
        match (self, saved) {
            (Source::Rng, None) => Ok(Box::new(RngDevice::new())),
            (Source::Rng, Some(state)) => boxed(id, RngDevice::restore(state)),
            (Source::Balloon, None) => Ok(Box::new(BalloonDevice::new())),
            (Source::Balloon, Some(state)) => boxed(id, BalloonDevice::restore(state)),
            (Source::Vsock(config), None) => boxed(id, VsockDevice::new(config)),
            (Source::Vsock(config), Some(state)) => boxed(id, VsockDevice::restore(config, state)),
            (Source::Fs(config), None) => boxed(id, FsDevice::new(config)),
            (Source::Fs(config), Some(state)) => boxed(id, FsDevice::restore(config, state)),
            (Source::Net(config), None) => boxed(id, NetDevice::new(config)),
            (Source::Net(config), Some(state)) => boxed(id, NetDevice::restore(config, state)),
            (Source::Disk(config), None) => boxed(id, BlockDevice::new(config)),
            (Source::Disk(config), Some(state)) => boxed(id, BlockDevice::restore(config, state)),
        }
    }
}

fn boxed<D, E>(id: String, device: Result<D, E>) -> Result<Box<dyn VirtioDevice>, MachineError>
where
    D: VirtioDevice + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    match device {
        Ok(device) => Ok(Box::new(device)),
        Err(source) => Err(MachineError::Device {
            id,
            source: Box::new(source),
        }),
    }
}
