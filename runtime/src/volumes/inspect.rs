//! Looks at the host: what each of a container's mounts and devices is, and what it becomes.
//! Everything is opened once, links followed, and used by its descriptor from then on. Makes nothing
//! but the directory of a source that is not there.

mod device;

use std::{
    collections::HashMap,
    fs::DirBuilder,
    io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Component, Path, PathBuf},
};

use bulkhead_proto::cri;
use rustix::fs::{AtFlags, FileType, Stat, StatxFlags};

use self::device::{device, guest_node};
use super::{
    VolumeError,
    digest::digest,
    mountinfo::{self, MountInfo},
    plan::{Image, Kind, Memory, Plan, Source, Volume},
    share::{MountOptions, ReadOnly},
    snapshot,
    validate::{self, Handler},
};

/// The kubelet's directory of emptyDirs in a pod's directory.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// What a plan depends on besides the sources themselves.
#[derive(Debug, Clone)]
pub struct PlanContext {
    /// Where the pod runs.
    pub handler: Handler,
    /// The pod's uid, as Kubernetes knows it.
    pub pod_uid: String,
    /// Sockets of the host that pods may reach.
    pub sockets: Vec<PathBuf>,
    /// Whether the pod has a directory for the host's files (sandbox.volumes of the configuration).
    pub share: bool,
}

/// Plans all mounts and devices of a container. Blocks.
///
/// # Errors
/// For the first that cannot be given to the container.
pub fn inspect(config: &cri::ContainerConfig, context: &PlanContext) -> Result<Plan, VolumeError> {
    validate::check(config, context.handler)?;
    let mut plan = Plan {
        on_host: context.handler == Handler::Host,
        ..Plan::default()
    };
    if config.mounts.is_empty() && config.devices.is_empty() {
        return Ok(plan);
    }
    let mounts = mountinfo::read().map_err(|source| VolumeError::Host {
        action: "read",
        path: "/proc/thread-self/mountinfo".into(),
        source,
    })?;
    // Of mounts at one place the last one is seen.
    let mut last = HashMap::new();
    for (number, mount) in config.mounts.iter().enumerate() {
        last.insert(validate::clean(&mount.container_path), number);
    }
    for (number, mount) in config.mounts.iter().enumerate() {
        if last.get(&validate::clean(&mount.container_path)) != Some(&number) {
            continue;
        }
        let inspector = Inspector {
            number,
            mount,
            context,
            mounts: &mounts,
        };
        plan.volumes.push(inspector.volume()?);
    }
    for (number, given) in config.devices.iter().enumerate() {
        device(number, given, context.handler, &mut plan)?;
    }
    Ok(plan)
}

struct Inspector<'a> {
    number: usize,
    mount: &'a cri::Mount,
    context: &'a PlanContext,
    mounts: &'a [MountInfo],
}

impl Inspector<'_> {
    fn field(&self) -> String {
        format!("mounts[{}].host_path", self.number)
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> VolumeError {
        let (field, path) = (self.field(), PathBuf::from(&self.mount.host_path));
        move |source| VolumeError::Source {
            field: field.clone(),
            action,
            path: path.clone(),
            source,
        }
    }

    fn volume(&self) -> Result<Volume, VolumeError> {
        let at = format!("mounts[{}].container_path", self.number);
        let destination = validate::container_path(at, &self.mount.container_path)?;
        let mut kind = match &self.mount.image {
            Some(image) => Kind::Image(Image {
                number: self.number,
                reference: image.image.clone(),
                sub_path: self.mount.image_sub_path.clone(),
            }),
            None => self.of_host()?,
        };
        let mut options = vec!["rbind".to_owned()];
        let sealed = self.is_read_only_inside(&kind);
        if let (Kind::Shared(_, shared), Handler::Kvm) = (&mut kind, self.context.handler) {
            shared.sealed = sealed;
        }
        if sealed {
            options.push(
                match (self.mount.recursive_read_only, self.context.handler) {
                    (true, Handler::Host) => "rro".to_owned(),
                    _ => "ro".to_owned(),
                },
            );
        }
        options.push(self.propagation_inside());
        options.extend(self.mount.mount_options.iter().cloned());
        Ok(Volume {
            destination,
            options,
            kind,
        })
    }

    /// Of the mount in the container. On the host it is what was asked; in a guest the host's
    /// mounts are part of the one file system of the share, and nothing is to follow.
    fn propagation_inside(&self) -> String {
        use cri::MountPropagation::{PropagationBidirectional, PropagationHostToContainer};
        match (self.context.handler, self.mount.propagation()) {
            (Handler::Host, PropagationBidirectional) => "rshared",
            (Handler::Host, PropagationHostToContainer) => "rslave",
            _ => "rprivate",
        }
        .to_owned()
    }

    /// A share is one file system to the guest. If only its top is read-only and mounts are below
    /// it, or may come, the host's mount alone keeps it so.
    fn is_read_only_inside(&self, kind: &Kind) -> bool {
        if !self.mount.readonly {
            return false;
        }
        match kind {
            Kind::Shared(source, options) if self.context.handler == Handler::Kvm => {
                let below = |mount: &MountInfo| {
                    mount.mount_point != source.path && mount.mount_point.starts_with(&source.path)
                };
                options.read_only == ReadOnly::Recursive
                    || (!options.follows_host && !self.mounts.iter().any(below))
            }
            _ => true,
        }
    }

    fn of_host(&self) -> Result<Kind, VolumeError> {
        let (source, stat) = self.source()?;
        if self.context.handler == Handler::Host {
            self.check_shared_peer(&source)?;
            return Ok(Kind::Shared(source, self.mount_options()));
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => self.socket(source, &stat),
            FileType::BlockDevice => Err(VolumeError::Unsupported {
                what: format!("the block device {} as a mount", source.path.display()),
                advice: "give it to the container as a device (volumeDevices in Kubernetes)",
            }),
            FileType::CharacterDevice => match guest_node(&stat) {
                Some(path) => Ok(Kind::GuestNode(path)),
                None => Err(VolumeError::Unsupported {
                    what: format!("the device {} of the node", source.path.display()),
                    advice: "a pod is a virtual machine and has its own devices; run the pod with \
                             the RuntimeClass handler \"host\"",
                }),
            },
            FileType::Directory => {
                if let Some(memory) = self.memory(&source, &stat)? {
                    return Ok(Kind::Memory(memory));
                }
                if self.is_followed(&source)? {
                    return Ok(Kind::Copied(source));
                }
                self.shared(source)
            }
            _ => self.shared(source),
        }
    }

    /// Opens the source. Where nothing is a directory is made, as every CRI runtime does: a source
    /// of which Kubernetes knows the type was looked at, or made, by the kubelet. What was made
    /// stays. A directory in a socket's place would keep its server from starting.
    fn source(&self) -> Result<(Source, Stat), VolumeError> {
        let path = Path::new(&self.mount.host_path);
        let missing = match Source::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            opened => return opened.map_err(self.failed("open")),
        };
        let shared = self.context.handler == Handler::Host || self.context.share;
        let socket = |socket: &PathBuf| socket == path;
        if !shared || self.context.sockets.iter().any(socket) {
            return Err(self.failed("open")(missing));
        }
        match DirBuilder::new().recursive(true).mode(0o755).create(path) {
            Ok(()) => {
                tracing::info!(
                    path = %path.display(),
                    "the source of a mount does not exist; made a directory there"
                );
                Source::open(path).map_err(self.failed("open"))
            }
            // A link that leads nowhere, there or on the way.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(self.failed("open")(missing))
            }
            Err(error) => Err(self.failed("make the directory")(error)),
        }
    }

    fn shared(&self, source: Source) -> Result<Kind, VolumeError> {
        if self.context.share {
            return Ok(Kind::Shared(source, self.mount_options()));
        }
        Err(VolumeError::NotAllowed {
            what: format!("the node's {} in a pod", source.path.display()),
            advice: "the pod was started without a virtio-fs device; set sandbox.volumes = true in \
                     /etc/bulkhead/config.toml and start it again",
        })
    }

    fn mount_options(&self) -> MountOptions {
        MountOptions {
            read_only: match (self.mount.readonly, self.mount.recursive_read_only) {
                (false, _) => ReadOnly::No,
                (true, false) => ReadOnly::Top,
                (true, true) => ReadOnly::Recursive,
            },
            follows_host: self.mount.propagation() != cri::MountPropagation::PropagationPrivate,
            returns: self.mount.propagation() == cri::MountPropagation::PropagationBidirectional,
            sealed: false,
        }
    }

    /// What a container mounts can only appear on the host below a mount that passes it on.
    fn check_shared_peer(&self, source: &Source) -> Result<(), VolumeError> {
        if self.mount.propagation() != cri::MountPropagation::PropagationBidirectional {
            return Ok(());
        }
        let id = mount_id(source).map_err(self.failed("look at"))?;
        let shared = self
            .mounts
            .iter()
            .any(|mount| mount.id == id && mount.shared);
        if shared {
            return Ok(());
        }
        Err(VolumeError::Invalid {
            field: format!("mounts[{}].propagation", self.number),
            value: "PROPAGATION_BIDIRECTIONAL".to_owned(),
            allowed: "the host path is on a mount that is not shared; make it one with \
                      `mount --make-rshared`",
        })
    }

    fn socket(&self, source: Source, stat: &Stat) -> Result<Kind, VolumeError> {
        // The path as given or as resolved: the operator may have listed either.
        let allowed =
            self.context.sockets.iter().any(|socket| {
                *socket == source.path || *socket == Path::new(&self.mount.host_path)
            });
        if !allowed {
            return Err(VolumeError::NotAllowed {
                what: format!("the socket {} of the node", source.path.display()),
                advice: "list it in volumes.sockets of /etc/bulkhead/config.toml, or run the pod \
                         with the RuntimeClass handler \"host\"",
            });
        }
        Ok(Kind::Socket(source, stat.into()))
    }

    /// Only what the container cannot write is copied, and only where no mount of the host's may
    /// turn up in it.
    fn is_followed(&self, source: &Source) -> Result<bool, VolumeError> {
        if !self.mount.readonly
            || self.mount.propagation() != cri::MountPropagation::PropagationPrivate
        {
            return Ok(false);
        }
        for _ in 0..4 {
            match snapshot::read(&*source.fd) {
                Ok(found) => return Ok(found.is_some()),
                // Turned while it was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed("read")(error)),
            }
        }
        // Turned all the time: it is one.
        Ok(true)
    }

    /// A memory-backed emptyDir of this pod, or a directory of one (subPath): the kubelet has
    /// mounted a tmpfs or hugetlbfs for it, whose size is the emptyDir's.
    fn memory(&self, source: &Source, stat: &Stat) -> Result<Option<Memory>, VolumeError> {
        let id = mount_id(source).map_err(self.failed("look at"))?;
        let Some((volume, sub_path)) =
            empty_dir(self.mounts, id, &source.path, &self.context.pod_uid)
        else {
            return Ok(None);
        };
        let root = rustix::fs::stat(&volume.mount_point)
            .map_err(|e| self.failed("look at the emptyDir of")(e.into()))?;
        let limit = rustix::fs::statvfs(&volume.mount_point)
            .map_err(|e| self.failed("read the size of")(e.into()))?;
        let name = volume.mount_point.file_name().unwrap_or_default();
        Ok(Some(Memory {
            name: memory_name(&name.to_string_lossy()),
            place: volume.mount_point.clone(),
            device: root.st_dev,
            bytes: limit.f_blocks.saturating_mul(limit.f_frsize),
            huge_page_bytes: match volume.kind.as_str() {
                "hugetlbfs" => page_size(&volume.super_options).unwrap_or(limit.f_bsize),
                _ => 0,
            },
            root: (&root).into(),
            sub_path,
            mounted: stat.into(),
        }))
    }
}

/// The emptyDir that a path is in, and where in it, if it is in one of this pod's in memory.
fn empty_dir<'a>(
    mounts: &'a [MountInfo],
    mount_id: u64,
    path: &Path,
    pod_uid: &str,
) -> Option<(&'a MountInfo, PathBuf)> {
    let own = mounts.iter().find(|mount| mount.id == mount_id)?;
    if !matches!(own.kind.as_str(), "tmpfs" | "hugetlbfs") {
        return None;
    }
    let is_volume = |mount: &&MountInfo| {
        let parts: Vec<_> = mount.mount_point.components().rev().take(4).collect();
        let names = [EMPTY_DIR, "volumes", pod_uid];
        mount.device == own.device
            && mount.root == Path::new("/")
            && !pod_uid.is_empty()
            && parts.len() == 4
            && names
                .iter()
                .zip(parts.iter().skip(1))
                .all(|(name, part)| *part == Component::Normal((*name).as_ref()))
    };
    let volume = mounts.iter().find(is_volume)?;
    let below = path.strip_prefix(&own.mount_point).ok()?;
    let inside = own.root.join(below);
    Some((volume, inside.strip_prefix("/").ok()?.to_owned()))
}

/// pagesize=2M and the like.
fn page_size(options: &[String]) -> Option<u64> {
    let text = options
        .iter()
        .find_map(|option| option.strip_prefix("pagesize="))?;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Kubernetes' names of volumes (DNS labels) as they are, everything else by its digest.
fn memory_name(name: &str) -> String {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=63).contains(&name.len()) && name.chars().all(good) {
        return name.to_owned();
    }
    digest(name.as_bytes(), 32)
}

fn mount_id(source: &Source) -> io::Result<u64> {
    let found = rustix::fs::statx(
        source.fd.as_fd(),
        "",
        AtFlags::EMPTY_PATH,
        StatxFlags::MNT_ID,
    )?;
    Ok(found.stx_mnt_id)
}

#[cfg(test)]
mod tests;
