//! Image volumes: an image's layers stacked as for a container's root, and a part of that. What is
//! in an image is not trusted: links lead nowhere but in the image. Blocks.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use bulkhead_proto::agent::{ImageVolume, ImpliedDirectories};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::error::VolumeError;
use super::place;
use crate::container::implied;
use crate::container::rootfs::Rootfs;
use crate::userns::IdMap;

/// Stacks the image at `root`, its owners mapped through the user namespace, and returns the path
/// of the requested part; a part other than the whole is mounted at `placed`.
///
/// # Errors
/// If the scratch disk is full, the kernel refuses, or the image has no such part.
pub fn mount(
    image: &ImageVolume,
    layers: &[PathBuf],
    users: Option<&(PathBuf, IdMap)>,
    root: PathBuf,
    scratch: PathBuf,
    placed: PathBuf,
) -> Result<PathBuf, VolumeError> {
    let rootfs = Rootfs {
        target: root.clone(),
        scratch,
    };
    match users {
        Some((file, map)) => {
            rootfs.mount_mapped(layers, file, map)?;
            // Its views of the layers are gone; what it made for them must not keep the place.
            let views = root.with_file_name("mapped");
            for nth in 0..layers.len() {
                let _gone = std::fs::remove_dir(views.join(nth.to_string()));
            }
            let _gone = std::fs::remove_dir(views);
        }
        None => rootfs.mount(layers)?,
    }
    implied::adopt(
        &root,
        layers,
        &by_layer(&image.layers, &image.implied_directories),
        users.map(|(_, map)| map),
    )?;
    let part = Path::new(&image.sub_path);
    let whole = part.components().all(|c| c == std::path::Component::CurDir);
    if whole {
        return Ok(root);
    }
    let failed = |error: rustix::io::Errno| VolumeError::Part {
        what: "the image".to_owned(),
        part: image.sub_path.clone(),
        error: error.into(),
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base =
        rustix::fs::openat(CWD, &root, flags | OFlags::DIRECTORY, Mode::empty()).map_err(failed)?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let found = rustix::fs::openat2(&base, part, flags, Mode::empty(), inside).map_err(failed)?;
    place::mount(found, &placed)?;
    Ok(placed)
}

/// The paths by the index of their layer. Layers that the request does not have are left out.
pub fn by_layer(
    layers: &[String],
    implied: &[ImpliedDirectories],
) -> HashMap<usize, HashSet<Vec<u8>>> {
    let place = |serial: &str| layers.iter().position(|layer| layer == serial);
    implied
        .iter()
        .filter_map(|implied| {
            let paths = implied.paths.iter().map(|path| path.to_vec()).collect();
            Some((place(&implied.layer)?, paths))
        })
        .collect()
}
