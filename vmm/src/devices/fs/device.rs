//! The file server as its transport sees it: a tag and two queues. The work is in `workers`.

use std::borrow::Cow;
use std::io;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::persist::{SavedFs, VERSION};
use super::workers::Workers;
use crate::event_loop::EventSet;
use crate::virtio::device::{Activation, DeviceError, SavedDevice, VirtioDevice, read_saved};
use crate::virtio::queue::Active;

/// The queue for FORGET, and the one for requests: a MiB of data in pages, and what is around it,
/// fits into one chain even where the driver has no indirect descriptors.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Bytes of a tag (virtio 1.2 §5.11.4).
pub const MAX_TAG: usize = 36;
/// Tag and number of request queues.
const CONFIG_BYTES: usize = MAX_TAG + 4;

/// What the device is made from.
#[derive(Debug)]
pub struct FsConfig {
    /// The name the guest mounts it by.
    pub tag: String,
    /// The threads, which serve one share.
    pub workers: Workers,
}

/// Why the device could not be made or saved.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag does not fit.
    #[error("the file system's tag {tag:?} must have 1 to {MAX_TAG} bytes")]
    BadTag {
        /// The tag.
        tag: String,
    },
    /// Files are open, and stay with this process.
    #[error(
        "the guest holds {nodes} files of the share and has {handles} of them open; unmount the share, \
         or stop what uses it, before taking a snapshot"
    )]
    Held {
        /// Files looked up.
        nodes: usize,
        /// Open files and directories.
        handles: usize,
    },
}

/// A file server.
#[derive(Debug)]
pub struct FsDevice {
    tag: String,
    workers: Workers,
    config: [u8; CONFIG_BYTES],
    quiesced: bool,
}

const ID: &str = "fs";

impl FsDevice {
    /// Makes the device.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn new(config: FsConfig) -> Result<Self, FsError> {
        let FsConfig { tag, workers } = config;
        if tag.is_empty() || tag.len() > MAX_TAG {
            return Err(FsError::BadTag { tag });
        }
        let mut space = [0; CONFIG_BYTES];
        for (to, from) in space.iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        for (to, from) in space.iter_mut().skip(MAX_TAG).zip(1u32.to_le_bytes()) {
            *to = from;
        }
        Ok(FsDevice {
            tag,
            workers,
            config: space,
            quiesced: false,
        })
    }

    /// Makes the device for a restored VM.
    ///
    /// # Errors
    /// When it is not what was saved.
    pub fn restore(config: FsConfig, state: &serde_json::Value) -> Result<Self, DeviceError> {
        let wrong = |reason| DeviceError::BadSavedForm {
            device: ID.to_owned(),
            reason,
        };
        let device = FsDevice::new(config).map_err(|e| wrong(e.to_string()))?;
        let saved: SavedFs =
            read_saved(state, VERSION, |saved: &SavedFs| saved.version).map_err(wrong)?;
        if saved.tag != device.tag {
            return Err(wrong(format!("the guest knows it as {:?}", saved.tag)));
        }
        if saved.mounted {
            device.workers.server().set_mounted(saved.agreed);
        }
        Ok(device)
    }

    fn io(&self, attempted: &'static str, source: io::Error) -> DeviceError {
        DeviceError::Io {
            device: ID.to_owned(),
            attempted,
            source,
        }
    }
}

impl VirtioDevice for FsDevice {
    fn id(&self) -> &'static str {
        ID
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.workers
            .activate(Active::new(activation))
            .map_err(|e| self.io("watching its queues", e))?;
        self.quiesced = false;
        Ok(())
    }

    // Its threads wait for the kicks.
    fn on_event(&mut self, _token: u32, _events: EventSet) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.workers
            .quiesce()
            .map_err(|e| self.io("waiting for requests in flight", e))?;
        self.quiesced = true;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.quiesced = false;
        self.workers.resume();
        Ok(())
    }

    fn reset(&mut self) {
        self.quiesced = false;
        self.workers.reset();
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        if self.workers.is_active() && !self.quiesced {
            return Err(DeviceError::not_quiesced(ID));
        }
        let server = self.workers.server();
        let (nodes, handles) = server.holds();
        if (nodes, handles) != (0, 0) {
            return Err(DeviceError::Device {
                device: ID.to_owned(),
                source: Box::new(FsError::Held { nodes, handles }),
            });
        }
        let state = SavedFs {
            version: VERSION,
            tag: self.tag.clone(),
            mounted: server.is_ready(),
            agreed: server.agreed(),
        };
        SavedDevice::new(ID, &state, self.workers.save())
    }

    fn metrics(&self) -> serde_json::Value {
        let server = self.workers.server();
        let mut value = serde_json::to_value(&server.metrics).unwrap_or_default();
        if let Some(map) = value.as_object_mut() {
            let (nodes, handles) = server.holds();
            map.insert("nodes".into(), nodes.into());
            map.insert("handles".into(), handles.into());
        }
        value
    }
}
