//! The sources and devices that volumes add to the container's spec.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bulkhead_proto::agent::Ownership;
use oci_spec::runtime::{
    LinuxDeviceBuilder, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount, MountBuilder, Spec,
};

use super::anonymous;
use super::error::VolumeError;
use crate::container::spec::SpecError;
use crate::userns::IdMap;

/// What volumes add to the container's spec.
#[derive(Debug, Default)]
pub struct Prepared {
    /// By the destination of a mount: its source.
    pub(super) sources: HashMap<PathBuf, PathBuf>,
    /// Device nodes.
    pub(super) devices: Vec<Node>,
    /// Anonymous volumes: the destination of a mount, and where its source is still to be made.
    pub(super) anonymous: Vec<(PathBuf, PathBuf)>,
}

/// A block device for the container.
#[derive(Debug)]
pub(super) struct Node {
    /// Where the container has it.
    pub(super) path: PathBuf,
    /// Where it is in the guest, for a node outside of the container's /dev.
    pub(super) placed: Option<PathBuf>,
    /// Its major and minor number.
    pub(super) number: (u32, u32),
    /// What the container may do with it, of `rwm`.
    pub(super) permissions: String,
    /// Owner and mode of the node.
    pub(super) ownership: Ownership,
}

impl Prepared {
    /// Makes the anonymous volumes, whose content is that of the container's `root`: it must be
    /// mounted, and not yet have anything mounted in it. Owners in it are those of a user namespace,
    /// if there is a `map`. Blocks.
    ///
    /// # Errors
    /// The first that cannot be made. What was made is in the container's scratch directory, and
    /// goes with it.
    pub fn make_anonymous(&mut self, root: &Path, map: Option<&IdMap>) -> Result<(), VolumeError> {
        for (destination, place) in std::mem::take(&mut self.anonymous) {
            let source = anonymous::make(root, &destination, place, map)?;
            self.sources.insert(destination, source);
        }
        Ok(())
    }

    /// Puts sources and devices into the spec.
    ///
    /// # Errors
    /// For a destination the spec has no mount at.
    pub fn apply(self, spec: &mut Spec) -> Result<(), SpecError> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (destination, source) in self.sources {
            let mount = mounts
                .iter_mut()
                .find(|mount| *mount.destination() == destination)
                .ok_or_else(|| {
                    SpecError::Invalid(format!("it has no mount at {}", destination.display()))
                })?;
            mount.set_source(Some(source));
        }
        for node in self.devices {
            add_node(spec, &mut mounts, node)?;
        }
        spec.set_mounts(Some(mounts));
        Ok(())
    }
}

fn add_node(spec: &mut Spec, mounts: &mut Vec<Mount>, node: Node) -> Result<(), SpecError> {
    let (major, minor) = (i64::from(node.number.0), i64::from(node.number.1));
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    rules.push(
        LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(major)
            .minor(minor)
            .access(node.permissions)
            .build()?,
    );
    resources.set_devices(Some(rules));
    linux.set_resources(Some(resources));
    match node.placed {
        Some(source) => mounts.push(
            MountBuilder::default()
                .destination(node.path)
                .typ("bind")
                .source(source)
                .options(vec!["bind".to_owned(), "rprivate".to_owned()])
                .build()?,
        ),
        None => {
            let mut devices = linux.devices().clone().unwrap_or_default();
            devices.push(
                LinuxDeviceBuilder::default()
                    .path(node.path)
                    .typ(LinuxDeviceType::B)
                    .major(major)
                    .minor(minor)
                    .file_mode(node.ownership.mode & 0o7777)
                    .uid(node.ownership.uid)
                    .gid(node.ownership.gid)
                    .build()?,
            );
            linux.set_devices(Some(devices));
        }
    }
    spec.set_linux(Some(linux));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        serde_json::from_str(
            r#"{"ociVersion":"1.2.0","mounts":[{"destination":"/data","type":"bind",
                "source":"x","options":["rbind"]}],
                "linux":{"resources":{"devices":[{"allow":false,"access":"rwm"}]}}}"#,
        )
        .unwrap()
    }

    #[test]
    fn sources_and_devices_are_put_into_the_spec() {
        let node = |path: &str, placed: Option<&str>| Node {
            path: path.into(),
            placed: placed.map(Into::into),
            number: (253, 16),
            permissions: "rw".to_owned(),
            ownership: Ownership {
                mode: 0o60660,
                uid: 1,
                gid: 2,
            },
        };
        let prepared = Prepared {
            sources: HashMap::from([("/data".into(), "/run/x".into())]),
            devices: vec![node("/dev/xvda", None), node("/disk", Some("/dev/y"))],
            anonymous: Vec::new(),
        };
        let mut spec = spec();
        prepared.apply(&mut spec).unwrap();
        let mounts = spec.mounts().clone().unwrap();
        assert_eq!(mounts[0].source(), &Some(PathBuf::from("/run/x")));
        assert_eq!(mounts[1].destination(), &PathBuf::from("/disk"));
        let linux = spec.linux().clone().unwrap();
        let devices = linux.devices().clone().unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].file_mode(), Some(0o660));
        let rules = linux
            .resources()
            .clone()
            .unwrap()
            .devices()
            .clone()
            .unwrap();
        assert_eq!(rules.len(), 3);
    }

    #[test]
    fn a_source_without_a_mount_is_refused() {
        let prepared = Prepared {
            sources: HashMap::from([("/other".into(), "/run/x".into())]),
            devices: Vec::new(),
            anonymous: Vec::new(),
        };
        assert!(prepared.apply(&mut spec()).is_err());
    }
}
