//! A container's root file system: image layers under a writable one, by the new mount API, which
//! has no limit on the length of a list of layers.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::userns::{IdMap, mount_mapped, outside};

/// What can go wrong with a root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A directory of it could not be made.
    #[error("making {} (is the scratch disk full?)", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// overlayfs refused.
    #[error("stacking {layers} layers at {}: {step}{log}", target.display())]
    Overlay {
        /// How many.
        layers: usize,
        /// Where.
        target: PathBuf,
        /// Which step.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        error: Errno,
        /// The kernel's log of the configuration, if it has one.
        log: String,
    },
    /// Its files' owners cannot be seen through the pod's user namespace.
    #[error("mapping the owners of {} for the pod's user namespace", path.display())]
    Map {
        /// What.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: Errno,
    },
    /// It could not be taken down.
    #[error("removing {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// The directories of one root file system.
#[derive(Debug, Clone)]
pub struct Rootfs {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The container's directory on the scratch disk.
    pub scratch: PathBuf,
}

impl Rootfs {
    /// What the container has written.
    pub fn upper(&self) -> PathBuf {
        self.scratch.join("upper")
    }

    /// Mounts it over `layers`, lowest first.
    ///
    /// # Errors
    /// If the scratch disk is full or the kernel refuses; nothing is mounted then.
    pub fn mount(&self, layers: &[PathBuf]) -> Result<(), RootfsError> {
        self.make_directories()?;
        self.stack(layers)
    }

    /// Mounts it for the user namespace that is `file`: the layers with their owners seen through
    /// it, while what is written has the guest's ids at once. (overlayfs makes files of its own
    /// beside the written ones as the guest's root, who is not in the namespace: that layer cannot
    /// be mapped.)
    ///
    /// # Errors
    /// If the scratch disk is full or the kernel refuses; nothing is mounted then.
    pub fn mount_mapped(
        &self,
        layers: &[PathBuf],
        file: &Path,
        map: &IdMap,
    ) -> Result<(), RootfsError> {
        self.make_directories()?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: Errno| RootfsError::Map { path, error }
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open(file, flags, Mode::empty()).map_err(failed(file))?;
        let (uid, gid) = outside(Some(map), 0, 0);
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let upper = self.upper();
        rustix::fs::chown(&upper, owner.0, owner.1).map_err(failed(&upper))?;

        let directory = self.target.with_file_name("mapped");
        let mut views = Vec::new();
        let result = (|| {
            for (nth, layer) in layers.iter().enumerate() {
                let view = directory.join(nth.to_string());
                make(&view)?;
                mount_mapped(layer, &view, &namespace).map_err(failed(layer))?;
                views.push(view);
            }
            self.stack(&views)
        })();
        // overlayfs has views of its own by now.
        for view in &views {
            let _ = unmount(view, UnmountFlags::DETACH);
        }
        result
    }

    fn make_directories(&self) -> Result<(), RootfsError> {
        for directory in [&self.target, &self.upper(), &self.scratch.join("work")] {
            make(directory)?;
        }
        Ok(())
    }

    fn stack(&self, layers: &[PathBuf]) -> Result<(), RootfsError> {
        let work = self.scratch.join("work");
        let empty;
        let layers = if layers.is_empty() {
            empty = [self.scratch.join("empty")];
            make(&empty[0])?;
            &empty[..]
        } else {
            layers
        };
        let failed = |step: &'static str, error: Errno, log: String| RootfsError::Overlay {
            layers: layers.len(),
            target: self.target.clone(),
            step,
            error,
            log,
        };
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|error| failed("opening overlayfs", error, String::new()))?;
        let step = |step: &'static str, result: Result<(), Errno>| {
            result.map_err(|error| failed(step, error, kernel_log(&overlay)))
        };
        step("naming", fsconfig_set_string(&overlay, "source", "overlay"))?;
        // overlayfs wants the top one first.
        for layer in layers.iter().rev() {
            step("a layer", fsconfig_set_string(&overlay, "lowerdir+", layer))?;
        }
        step(
            "the upper layer",
            fsconfig_set_string(&overlay, "upperdir", self.upper()),
        )?;
        step(
            "the work directory",
            fsconfig_set_string(&overlay, "workdir", &work),
        )?;
        // The writable layer dies with the pod, so nothing is gained by waiting for the disk.
        step("volatile", fsconfig_set_flag(&overlay, "volatile"))?;
        // A file and its directory have one device number, the overlay's: what stays on one file
        // system (du -x, find -xdev) or tells a mount by it (mountpoint) counts right. The numbers
        // of layers' inodes leave the high bits free that tell the layers apart.
        step("xino", fsconfig_set_string(&overlay, "xino", "on"))?;
        step("creating", fsconfig_create(&overlay))?;
        let mounted = fsmount(
            &overlay,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::empty(),
        )
        .map_err(|error| failed("mounting", error, kernel_log(&overlay)))?;
        step(
            "attaching",
            move_mount(
                &mounted,
                "",
                CWD,
                &self.target,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            ),
        )
    }

    /// Unmounts it. One that is not mounted is not an error. What the container wrote stays for
    /// [`remove_written`](Self::remove_written).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn unmount(&self) -> Result<(), RootfsError> {
        // Lazily: a process that is dying in the kernel must not keep the container.
        match unmount(&self.target, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(error) => Err(RootfsError::Remove {
                path: self.target.clone(),
                error: error.into(),
            }),
        }
    }

    /// Removes what the container wrote. It can be much: call this where blocking is allowed.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn remove_written(&self) -> Result<(), RootfsError> {
        match crate::volumes::remove::tree(&self.scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RootfsError::Remove {
                path: self.scratch.clone(),
                error,
            }),
            _ => Ok(()),
        }
    }
}

fn make(path: &Path) -> Result<(), RootfsError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|error| RootfsError::Make {
            path: path.to_owned(),
            error,
        })
}

/// What the kernel says about a configuration it refused: fsopen's descriptor reads as its log.
pub fn kernel_log(overlay: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 512];
    while let Ok(length) = rustix::io::read(overlay, &mut buffer[..]) {
        if length == 0 || text.len() > 2048 {
            break;
        }
        text.push_str("; ");
        text.push_str(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).trim_end());
    }
    text
}
