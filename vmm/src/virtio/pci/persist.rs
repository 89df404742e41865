//! Saving a function and putting it back.

use virtio_queue::QueueT;

use super::VirtioPci;
use super::common::Common;
use super::saved::{SavedFunction, TransportRestoreError};
use crate::pci::msix;
use crate::sync::lock;
use crate::virtio::device::{ActiveQueue, DeviceError, Interrupt};

impl VirtioPci {
    /// The saved form. The function must be quiesced.
    ///
    /// # Errors
    /// The device's.
    pub fn save(&self) -> Result<SavedFunction, DeviceError> {
        let device = lock(&self.device);
        let mut vectors = vec![self.interrupt.config_vector()];
        vectors.extend(
            (0u16..)
                .take(self.common.queues.len())
                .map(|i| self.interrupt.queue_vector(i)),
        );
        Ok(SavedFunction {
            id: self.id.clone(),
            address: self.address,
            device_type: device.device_type(),
            config: self.config.save(),
            msix: self.msix.save(),
            common: self.common.clone(),
            vectors,
            active: self.active,
            device: device.save()?,
        })
    }

    /// Continues where `saved` stopped. The device in this function was made from
    /// `saved.device.state` already.
    ///
    /// # Errors
    /// When the two do not fit each other, or the device does not start.
    pub fn restore(&mut self, saved: &SavedFunction) -> Result<(), TransportRestoreError> {
        let differs = |what| TransportRestoreError::Differs {
            id: self.id.clone(),
            what,
        };
        if saved.id != self.id {
            return Err(differs("the id"));
        }
        if saved.device_type != lock(&self.device).device_type() {
            return Err(differs("the device type"));
        }
        if saved.common.acked & !self.common.offered != 0 {
            return Err(differs("the set of features"));
        }
        let sizes = |common: &Common| common.queues.iter().map(|q| q.max_size).collect::<Vec<_>>();
        if sizes(&saved.common) != sizes(&self.common)
            || saved.vectors.len() != self.common.queues.len() + 1
        {
            return Err(differs("the set of queues"));
        }
        let offered = self.common.offered;
        self.common = saved.common.clone();
        self.common.offered = offered;
        self.config.restore(&saved.config);
        let control = self.msix_cap + 2;
        self.config
            .write(control, &saved.msix.control.to_le_bytes());
        self.msix
            .restore(&saved.msix)
            .map_err(|source| TransportRestoreError::Msix {
                id: self.id.clone(),
                source,
            })?;
        let mut vectors = saved.vectors.iter();
        self.interrupt
            .set_config_vector(vectors.next().copied().unwrap_or(msix::NO_VECTOR));
        for (index, vector) in (0u16..).zip(vectors) {
            self.interrupt.set_queue_vector(index, *vector);
        }
        if saved.active {
            self.restart(saved)?;
        }
        Ok(())
    }

    fn restart(&mut self, saved: &SavedFunction) -> Result<(), TransportRestoreError> {
        let mut queues = Vec::new();
        for state in &saved.device.queues {
            let wrong = |source| TransportRestoreError::Queue {
                id: self.id.clone(),
                index: state.index,
                source,
            };
            let queue = state.to_queue().map_err(wrong)?;
            let kick = self.kicks.get(usize::from(state.index));
            let (Some(kick), true) = (kick, queue.is_valid(&self.context.mem)) else {
                return Err(wrong(virtio_queue::Error::QueueNotReady));
            };
            queues.push(ActiveQueue {
                index: state.index,
                queue,
                kick: self.clone_kick(kick)?,
            });
        }
        let indices: Vec<u16> = queues.iter().map(|q| q.index).collect();
        self.start_device(queues)?;
        // Kicks and interrupts that were on their way are not saved: both sides look again.
        for index in indices {
            if let Some(kick) = self.kicks.get(usize::from(index)) {
                // Full means a kick is pending.
                let _ = kick.write(1);
            }
            self.interrupt.signal_queue(index);
        }
        Ok(())
    }
}
