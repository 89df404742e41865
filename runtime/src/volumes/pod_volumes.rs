//! A plan carried out for a pod in a virtual machine: recorded, made on the host, told to the agent,
//! and given back in reverse.

use std::{collections::HashMap, os::fd::AsFd as _, path::Path, sync::Arc};

use bulkhead_contract::vmm::SEALED_SUFFIX;
use bulkhead_images::{ImageRecord, LayerDisk};
use bulkhead_proto::agent;

use super::{
    BlockDisk, Image, Kind, Memory, Plan, Source, VolumeError, VolumeRecord, blocking,
    bridge::Bridge,
    digest::digest,
    followed::Followed,
    share::{Inside, MountOptions, Share},
    size::SizeWatch,
    snapshot::Ownership,
    token::Token,
    watch::Watch,
};
use crate::{app::App, container, records::ContainerRecord, sandbox::Pod};

/// The ports of bridged sockets: far from the agent's own.
const FIRST_PORT: u32 = 0x4000_0000;
/// Hex digits of names made from paths.
const NAME_DIGITS: usize = 32;
/// How much of a container's id the names of its share's entries begin with.
const ID_DIGITS: usize = 16;

/// A container's volumes on their way into a pod.
#[derive(Debug, Default)]
pub struct Prepared {
    /// For the container's record.
    pub records: Vec<VolumeRecord>,
    /// For the agent.
    pub volumes: Vec<agent::Volume>,
    /// For the agent.
    pub block_devices: Vec<agent::BlockDevice>,
    /// Disks of image volumes' layers.
    pub layers: Vec<LayerDisk>,
    /// Block devices, open.
    pub disks: Vec<BlockDisk>,
    /// What is to be mounted in the share, by its entry.
    sources: HashMap<String, (Source, MountOptions)>,
}

/// The name under which an image volume holds its image.
pub fn holder(container: &str, number: usize) -> String {
    format!("{container}/{number}")
}

/// The container of a holder's name.
pub fn container_of(holder: &str) -> &str {
    holder.split('/').next().unwrap_or(holder)
}

/// Holds the images of a plan's image volumes, by the number of CRI's mount. A failure leaves what
/// is held to [`release_images`].
pub async fn hold_images(
    app: &App,
    container: &str,
    plan: &Plan,
) -> Result<HashMap<usize, Arc<ImageRecord>>, VolumeError> {
    let mut held = HashMap::new();
    for volume in &plan.volumes {
        if let Kind::Image(Image {
            number, reference, ..
        }) = &volume.kind
        {
            let image = app
                .images
                .hold(&holder(container, *number), reference)
                .await
                .map_err(|source| VolumeError::Image {
                    at: volume.destination.display().to_string(),
                    source,
                })?;
            held.insert(*number, image);
        }
    }
    Ok(held)
}

/// Ends the holds of a container's image volumes.
pub async fn release_images(
    app: &App,
    container: &str,
) -> Result<(), bulkhead_images::ImagesError> {
    let prefix = format!("{container}/");
    for holder in app.images.holders() {
        if holder.starts_with(&prefix) {
            app.images.release(&holder).await?;
        }
    }
    Ok(())
}

/// Decides names; what other containers of the pod have already is shared with them. Makes nothing.
pub fn prepare(
    app: &App,
    pod: &str,
    container: &str,
    plan: Plan,
    images: &HashMap<usize, Arc<ImageRecord>>,
) -> Result<Prepared, VolumeError> {
    let others = records_of(app, pod, None);
    let mut prepared = Prepared::default();
    for volume in plan.volumes {
        let source = match volume.kind {
            Kind::Shared(source, options) if plan.on_host => Some(on_host(&source, options)),
            Kind::Shared(source, options) => {
                Some(prepared.share(&others, container, source, options))
            }
            Kind::Memory(memory) => Some(prepared.memory(memory)),
            Kind::Copied(source) => {
                let name = name_of(&source.path);
                prepared.records.push(VolumeRecord::Copy {
                    name: name.clone(),
                    path: source.path,
                });
                Some(agent::volume::Source::Copied(agent::CopiedVolume { name }))
            }
            Kind::Socket(source, ownership) => Some(prepared.socket(&others, source, ownership)?),
            Kind::Image(image) => images
                .get(&image.number)
                .map(|record| prepared.image(app, container, &image, record)),
            Kind::Anonymous => Some(agent::volume::Source::Anonymous(agent::AnonymousVolume {})),
            // The spec names it.
            Kind::GuestNode(_) => None,
        };
        if source.is_some() {
            prepared.volumes.push(agent::Volume {
                destination: volume.destination.to_string_lossy().into_owned(),
                source,
            });
        }
    }
    for disk in plan.disks {
        prepared.records.push(VolumeRecord::Disk {
            serial: disk.serial.clone(),
        });
        prepared.block_devices.push(agent::BlockDevice {
            serial: disk.serial.clone(),
            path: disk.destination.to_string_lossy().into_owned(),
            permissions: disk.permissions.clone(),
            ownership: Some(disk.ownership.into()),
        });
        prepared.disks.push(disk);
    }
    Ok(prepared)
}

impl Prepared {
    fn memory(&mut self, memory: Memory) -> agent::volume::Source {
        // A hugetlbfs keeps the size it was mounted with, on any node.
        if memory.huge_page_bytes == 0 {
            self.records.push(VolumeRecord::Memory {
                name: memory.name.clone(),
                path: memory.place,
                device: memory.device,
            });
        }
        agent::volume::Source::Memory(agent::MemoryVolume {
            name: memory.name,
            bytes: memory.bytes,
            huge_page_bytes: memory.huge_page_bytes,
            root: Some(memory.root.into()),
            sub_path: memory.sub_path.to_string_lossy().into_owned(),
            sub_path_made: Some(memory.mounted.into()),
        })
    }

    fn share(
        &mut self,
        others: &[VolumeRecord],
        container: &str,
        source: Source,
        options: MountOptions,
    ) -> agent::volume::Source {
        let same = |record: &VolumeRecord| match record {
            VolumeRecord::Share {
                name,
                path,
                device,
                inode,
                options: how,
            } if (path, *device, *inode, *how)
                == (&source.path, source.device, source.inode, options) =>
            {
                Some(name.clone())
            }
            _ => None,
        };
        let existing = others.iter().chain(&self.records).find_map(same);
        let name = existing.unwrap_or_else(|| {
            let id: String = container.chars().take(ID_DIGITS).collect();
            let suffix = if options.sealed { SEALED_SUFFIX } else { "" };
            format!("{id}-{}{suffix}", self.records.len())
        });
        self.records.push(VolumeRecord::Share {
            name: name.clone(),
            path: source.path.clone(),
            device: source.device,
            inode: source.inode,
            options,
        });
        self.sources.insert(name.clone(), (source, options));
        agent::volume::Source::Shared(agent::SharedVolume { name })
    }

    /// A socket that the pod uses already keeps its token.
    fn socket(
        &mut self,
        others: &[VolumeRecord],
        source: Source,
        ownership: Ownership,
    ) -> Result<agent::volume::Source, VolumeError> {
        let (name, port) = (name_of(&source.path), port_of(&source.path));
        let mut known = others.iter().chain(&self.records);
        let existing = known.find_map(|record| match record {
            VolumeRecord::Socket {
                name: other, token, ..
            } if *other == name => Some(token.clone()),
            _ => None,
        });
        let token = match existing {
            Some(token) => token,
            None => Some(Token::new().map_err(|error| VolumeError::Host {
                action: "make a token for",
                path: source.path.clone(),
                source: error,
            })?),
        };
        let said = token.as_ref().map(|token| token.bytes().to_vec());
        self.records.push(VolumeRecord::Socket {
            name: name.clone(),
            path: source.path,
            port,
            token,
        });
        Ok(agent::volume::Source::Socket(agent::SocketVolume {
            name,
            port,
            ownership: Some(ownership.into()),
            token: said.unwrap_or_default().into(),
        }))
    }

    fn image(
        &mut self,
        app: &App,
        container: &str,
        image: &Image,
        record: &ImageRecord,
    ) -> agent::volume::Source {
        let layers = app.images.disks(record);
        let serials: Vec<String> = layers.iter().map(|layer| layer.serial.clone()).collect();
        self.records.push(VolumeRecord::Image {
            holder: holder(container, image.number),
            layers: serials.clone(),
        });
        let implied_directories = container::implied_directories(&layers);
        self.layers.extend(layers);
        agent::volume::Source::Image(agent::ImageVolume {
            layers: serials,
            implied_directories,
            sub_path: image.sub_path.clone(),
        })
    }
}

fn on_host(source: &Source, options: MountOptions) -> agent::volume::Source {
    let propagation = match (options.follows_host, options.returns) {
        (_, true) => agent::Propagation::Both,
        (true, false) => agent::Propagation::FromHost,
        (false, false) => agent::Propagation::None,
    };
    agent::volume::Source::Host(agent::HostVolume {
        path: source.path.to_string_lossy().into_owned(),
        propagation: propagation.into(),
    })
}

/// Makes on the host what a container's record names: mounts, watches, bridges. What is there
/// already stays. Disks are the container module's.
pub async fn attach(app: &App, pod: &Pod, prepared: &mut Prepared) -> Result<(), VolumeError> {
    if prepared.records.is_empty() {
        return Ok(());
    }
    let mut live = pod.volumes.lock().await;
    let sources = std::mem::take(&mut prepared.sources);
    if !sources.is_empty() {
        let share = Share::of_pod(&app.config.paths.pod(&pod.id));
        let inside = inside(pod)?;
        blocking(move || {
            for (name, (source, options)) in sources {
                share.add(&inside, &name, source.fd.as_fd(), options)?;
            }
            Ok(())
        })
        .await?;
    }
    follow(app, pod, &mut live, &prepared.records).await
}

/// Starts the watches and bridges of some records that do not run yet.
async fn follow(
    app: &App,
    pod: &Pod,
    live: &mut Followed,
    records: &[VolumeRecord],
) -> Result<(), VolumeError> {
    for record in records {
        match record {
            VolumeRecord::Copy { name, path } if !live.watches.contains_key(name) => {
                let watch = Watch::start(pod.agent.clone(), name.clone(), path.clone()).await?;
                live.watches.insert(name.clone(), watch);
            }
            VolumeRecord::Memory { name, path, device } if !live.sizes.contains_key(name) => {
                let size = SizeWatch::start(pod.agent.clone(), name.clone(), path.clone(), *device);
                live.sizes.insert(name.clone(), size);
            }
            VolumeRecord::Socket {
                name,
                path,
                port,
                token,
            } => {
                if let Some(bridge) = live.bridges.get(name) {
                    token.iter().for_each(|token| bridge.also(token));
                    continue;
                }
                let uid = app.records.sandboxes.get(&pod.id).and_then(|r| r.uid());
                let Some(at) = pod.machine.vsock_port(*port) else {
                    continue;
                };
                let bridge = Bridge::start(at, uid, path.clone(), token.clone())?;
                live.bridges.insert(name.clone(), bridge);
            }
            _ => {}
        }
    }
    Ok(())
}

/// After a restart of the daemon: takes up again what a pod's containers need. Repeatable; a failure
/// with one volume keeps no other from it.
pub async fn resume(app: &App, pod: &Pod) {
    let records = records_of(app, &pod.id, None);
    if records.is_empty() {
        return;
    }
    let mut live = pod.volumes.lock().await;
    for record in &records {
        if let Err(error) = follow(app, pod, &mut live, std::slice::from_ref(record)).await {
            let error = crate::error::chain(&error);
            tracing::warn!(pod = pod.id, ?record, error, "a volume is not followed");
        }
    }
}

/// Gives back what a container alone needed on the host. Repeatable. The guest has let go before.
pub async fn release(app: &App, record: &ContainerRecord) -> Result<(), VolumeError> {
    let (container, pod) = (&record.meta.id, &record.meta.sandbox_id);
    if record.meta.volumes.is_empty() {
        return Ok(());
    }
    let pod = app.pods.get(pod);
    // Held over all of it, so that a container that comes in between finds what it counts on.
    let mut live = match &pod {
        Some(pod) => Some(pod.volumes.lock().await),
        None => None,
    };
    let pod_id = &record.meta.sandbox_id;
    let others = records_of(app, pod_id, Some(container));
    for volume in record.meta.volumes.iter().rev() {
        let needed = |name: &str| others.iter().any(|other| names(other) == Some(name));
        match volume {
            VolumeRecord::Share { name, .. } if !needed(name) => {
                let share = Share::of_pod(&app.config.paths.pod(pod_id));
                let name = name.clone();
                let inside = pod.as_deref().map(inside).transpose()?;
                // The pod's release has taken the whole share down, if it is gone.
                blocking(move || match share.exists() {
                    true => share.remove(inside.as_ref(), &name),
                    false => Ok(()),
                })
                .await?;
            }
            VolumeRecord::Copy { name, .. } if !needed(name) => {
                live.as_mut().map(|live| live.watches.remove(name));
            }
            VolumeRecord::Memory { name, .. } if !needed(name) => {
                live.as_mut().map(|live| live.sizes.remove(name));
            }
            VolumeRecord::Socket { name, .. } if !needed(name) => {
                live.as_mut().map(|live| live.bridges.remove(name));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a pod has volumes whose last writes are in its guest.
pub fn has_writes(app: &App, pod: &str) -> bool {
    records_of(app, pod, None).iter().any(|record| {
        matches!(
            record,
            VolumeRecord::Share { .. } | VolumeRecord::Disk { .. }
        )
    })
}

fn inside(pod: &Pod) -> Result<Inside, VolumeError> {
    let process = pod.process.descriptor();
    let process = process.map_err(|source| VolumeError::Host {
        action: "enter the VMM of the pod",
        path: pod.id.clone().into(),
        source,
    })?;
    Ok(Inside::of_vmm(process))
}

fn records_of(app: &App, pod: &str, but: Option<&str>) -> Vec<VolumeRecord> {
    app.records
        .containers_of(pod)
        .iter()
        .filter(|record| Some(record.meta.id.as_str()) != but)
        .flat_map(|record| record.meta.volumes.clone())
        .collect()
}

fn names(record: &VolumeRecord) -> Option<&str> {
    match record {
        VolumeRecord::Share { name, .. }
        | VolumeRecord::Copy { name, .. }
        | VolumeRecord::Memory { name, .. }
        | VolumeRecord::Socket { name, .. } => Some(name),
        VolumeRecord::Disk { .. } | VolumeRecord::Image { .. } => None,
    }
}

fn name_of(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    digest(path.as_os_str().as_bytes(), NAME_DIGITS)
}

/// A port of the socket's own: two that fall together cannot both be listened on, which is told.
fn port_of(path: &Path) -> u32 {
    let digits: String = name_of(path).chars().take(7).collect();
    FIRST_PORT + u32::from_str_radix(&digits, 16).unwrap_or(0)
}

impl From<Ownership> for agent::Ownership {
    fn from(own: Ownership) -> Self {
        Self {
            mode: own.mode,
            uid: own.uid,
            gid: own.gid,
        }
    }
}
