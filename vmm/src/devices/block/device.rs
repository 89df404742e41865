//! The disk as its transport sees it: configuration space, rings, jobs in flight.

use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::backing::{Backing, BackingError, Part};
use super::engine::{Engine, EngineKind};
use super::metrics::BlockMetrics;
use super::persist::{self, SavedBlock};
use super::request::{Disk, MAX_RANGE_SECTORS, SECTOR};
use super::running::Running;
use crate::event_loop::EventSet;
use crate::virtio::device::{Activation, DeviceError, SavedDevice, VirtioDevice};
use crate::virtio::queue::Active;

/// Entries of one queue.
const QUEUE_SIZE: u16 = 256;
/// The most queues a disk may have.
pub const MAX_DISK_QUEUES: u16 = 16;
/// The most data segments in a request: a queue less header and status.
const SEG_MAX: u32 = 254;
/// The event token of the engine; rings have small numbers.
const ENGINE: u32 = 1000;
/// How long in-flight requests may take to finish at a pause or reset.
const DRAIN: Duration = Duration::from_secs(10);
/// How often one event looks at the rings again because jobs finished meanwhile.
const ROUNDS: usize = 8;
/// Bytes of configuration space.
const CONFIG_BYTES: usize = 60;

/// What a disk is made from.
#[derive(Debug)]
pub struct BlockConfig {
    /// Its serial, at most 20 bytes.
    pub id: String,
    /// The file or block device that it is, or files one after the other, if `read_only`.
    pub parts: Vec<Part>,
    /// Refuse writes.
    pub read_only: bool,
    /// How many queues, 1 to 16.
    pub queues: u16,
    /// The engine.
    pub engine: EngineKind,
}

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The serial does not fit.
    #[error("disk {id:?}: the id must have 1 to 20 bytes, it is the disk's serial")]
    BadId {
        /// The id.
        id: String,
    },
    /// Zero or too many queues.
    #[error("disk {id}: {queues} queues requested; a disk has 1 to {MAX_DISK_QUEUES}")]
    BadQueues {
        /// The disk.
        id: String,
        /// What was asked for.
        queues: u16,
    },
    /// Its files cannot be a disk.
    #[error("disk {id}: {source}")]
    Backing {
        /// The disk.
        id: String,
        /// What is wrong with them.
        #[source]
        source: BackingError,
    },
    /// Several files, and writable.
    #[error("disk {id}: a disk of several files must be read-only")]
    Writable {
        /// The disk.
        id: String,
    },
    /// Given for a restore, but not what was saved.
    #[error("disk {id}: does not fit its saved form: {reason}")]
    Saved {
        /// The disk.
        id: String,
        /// What does not fit.
        reason: String,
    },
}

/// A disk.
#[derive(Debug)]
pub struct BlockDevice {
    id: String,
    backing: Arc<Backing>,
    sectors: u64,
    read_only: bool,
    engine: EngineKind,
    queue_sizes: Vec<u16>,
    features: u64,
    config: [u8; CONFIG_BYTES],
    running: Option<Running>,
    quiesced: bool,
    metrics: BlockMetrics,
}

const fn bit(feature: u32) -> u64 {
    1 << feature
}

impl BlockDevice {
    /// Makes a disk.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(config: BlockConfig) -> Result<Self, BlockError> {
        let id = config.id;
        if id.is_empty() || id.len() > VIRTIO_BLK_ID_BYTES as usize {
            return Err(BlockError::BadId { id });
        }
        if config.queues == 0 || config.queues > MAX_DISK_QUEUES {
            return Err(BlockError::BadQueues {
                id,
                queues: config.queues,
            });
        }
        let backing = match Backing::new(config.parts) {
            Ok(backing) => backing,
            Err(source) => return Err(BlockError::Backing { id, source }),
        };
        if backing.is_joined() && !config.read_only {
            return Err(BlockError::Writable { id });
        }
        let sectors = backing.sectors();
        let mut features = bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_FLUSH);
        if config.queues > 1 {
            features |= bit(VIRTIO_BLK_F_MQ);
        }
        if config.read_only {
            features |= bit(VIRTIO_BLK_F_RO);
        } else if let Some(file) = backing.only_file()
            && punches_holes(file, sectors * SECTOR)
        {
            features |= bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES);
        }
        Ok(BlockDevice {
            id,
            backing: Arc::new(backing),
            sectors,
            read_only: config.read_only,
            engine: config.engine,
            queue_sizes: vec![QUEUE_SIZE; usize::from(config.queues)],
            features,
            config: config_space(sectors, config.queues),
            running: None,
            quiesced: false,
            metrics: BlockMetrics::default(),
        })
    }

    /// Makes a disk for a restored VM: as [`BlockDevice::new`], checked against what was saved.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn restore(config: BlockConfig, state: &serde_json::Value) -> Result<Self, BlockError> {
        let mut device = BlockDevice::new(config)?;
        let wrong = |reason| BlockError::Saved {
            id: device.id.clone(),
            reason,
        };
        let saved: SavedBlock =
            serde_json::from_value(state.clone()).map_err(|e| wrong(e.to_string()))?;
        if let Some(reason) = saved.mismatch(&device.saved()) {
            return Err(wrong(reason));
        }
        // The driver negotiated with this offer; it stays what it was.
        device.features = saved.features;
        Ok(device)
    }

    fn saved(&self) -> SavedBlock {
        SavedBlock {
            version: persist::VERSION,
            sectors: self.sectors,
            read_only: self.read_only,
            queues: u16::try_from(self.queue_sizes.len()).unwrap_or(0),
            features: self.features,
        }
    }

    fn io(&self, attempted: &'static str, source: io::Error) -> DeviceError {
        DeviceError::Io {
            device: self.id.clone(),
            attempted,
            source,
        }
    }

    /// Waits for all jobs.
    fn drain(&mut self) -> io::Result<()> {
        let Some(running) = self.running.as_mut() else {
            return Ok(());
        };
        let deadline = Instant::now() + DRAIN;
        loop {
            running.pump(&mut self.metrics);
            if running.idle() {
                return Ok(());
            }
            running.wait(deadline)?;
        }
    }
}

/// Whether `file` can give space back. Asked beyond its end, where nothing can be lost.
fn punches_holes(file: BorrowedFd<'_>, bytes: u64) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, bytes, 4096).is_ok()
}

/// `struct virtio_blk_config` (virtio 1.2 §5.2.4).
fn config_space(sectors: u64, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0u8; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in space.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &512u32.to_le_bytes()); // blk_size
    put(24, &[3]); // physical_block_exp: 4 KiB, what file systems on either side use
    put(26, &8u16.to_le_bytes()); // min_io_size, in blocks
    put(34, &queues.to_le_bytes());
    put(36, &MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
    put(40, &1u32.to_le_bytes()); // max_discard_seg
    put(44, &8u32.to_le_bytes()); // discard_sector_alignment
    put(48, &MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
    put(52, &1u32.to_le_bytes()); // max_write_zeroes_seg
    put(56, &[1]); // write_zeroes_may_unmap
    space
}

impl VirtioDevice for BlockDevice {
    fn id(&self) -> &str {
        &self.id
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        self.features
    }

    fn config_as_bytes(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.config)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut active = Active::new(activation);
        let engine = Engine::start(self.engine, &self.backing)
            .map_err(|e| self.io("starting io_uring or a worker thread", e))?;
        active
            .events
            .add(engine.fd(), ENGINE, EventSet::IN | EventSet::EDGE_TRIGGERED)
            .map_err(|e| self.io("watching its completions", e))?;
        if let Err(e) = active.watch() {
            let _ = active.events.remove(engine.fd());
            return Err(self.io("watching its queues", e));
        }
        self.metrics.engine = engine.name();
        let disk = Disk {
            sectors: self.sectors,
            read_only: self.read_only,
            discard: active.has_feature(VIRTIO_BLK_F_DISCARD),
            write_zeroes: active.has_feature(VIRTIO_BLK_F_WRITE_ZEROES),
        };
        // virtio 1.2 §5.2.6.2: a driver that knows no flush gets write-through.
        let write_through = !active.has_feature(VIRTIO_BLK_F_FLUSH);
        let backing = Arc::clone(&self.backing);
        self.running = Some(Running::new(active, engine, backing, disk, write_through));
        self.quiesced = false;
        Ok(())
    }

    fn on_event(&mut self, token: u32, _events: EventSet) {
        if self.quiesced {
            return;
        }
        let Some(running) = self.running.as_mut() else {
            return;
        };
        let metrics = &mut self.metrics;
        if token != ENGINE {
            let position = usize::try_from(token).unwrap_or(usize::MAX);
            running.process(position, &self.id, metrics);
        }
        for _ in 0..ROUNDS {
            if !running.launch(metrics) {
                return;
            }
            for position in 0..running.active.rings.len() {
                running.process(position, &self.id, metrics);
            }
        }
        let _ = running.launch(metrics);
        // Enough for now: other devices share this thread.
        running.active.kick_all();
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.quiesced = true;
        if let Err(e) = self.drain() {
            self.quiesced = false;
            return Err(self.io("waiting for requests in flight", e));
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.quiesced = false;
        if let Some(running) = self.running.as_mut() {
            running.active.kick_all();
        }
        Ok(())
    }

    fn reset(&mut self) {
        // Where the host's storage hangs, the engine sees to the memory that the kernel holds.
        let _ = self.drain();
        self.quiesced = false;
        if let Some(mut running) = self.running.take() {
            running.stop_watching();
        }
    }

    fn save(&self) -> Result<SavedDevice, DeviceError> {
        if self.running.is_some() && !self.quiesced {
            return Err(DeviceError::not_quiesced(&self.id));
        }
        let active = self.running.as_ref().map(|r| &r.active);
        let queues = active.map(Active::save).unwrap_or_default();
        SavedDevice::new(&self.id, &self.saved(), queues)
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::to_value(&self.metrics).unwrap_or_default()
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        self.reset();
    }
}
