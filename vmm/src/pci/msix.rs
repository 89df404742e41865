//! MSI-X (PCI local bus spec 3.0 §6.8.2): table, pending bits and their tie to KVM.
//!
//! Every vector has an eventfd. While the vector is unmasked the eventfd is an irqfd; while it
//! is masked the fd is not connected and its counter *is* the pending bit, which KVM delivers
//! when it is connected again. So a device only ever writes to its eventfd, whether it lives in
//! this process or in the kernel, and nothing is lost.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::platform::{Gsi, MsiMessage, Platform, PlatformError};
use crate::poll::{poll, readable};

/// Bytes of one table entry.
pub const ENTRY: u64 = 16;
/// The vector that means none (virtio 1.2 §4.1.5.1.2.1).
pub const NO_VECTOR: u16 = 0xffff;
/// Message control: MSI-X enable.
pub const ENABLE: u16 = 1 << 15;
/// Message control: mask all.
pub const MASK_ALL: u16 = 1 << 14;

const MASKED: u32 = 1;
/// Beyond every table; where absurd offsets are taken to be.
const END: u64 = u32::MAX as u64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    message: MsiMessage,
    control: u32,
    connected: Option<(Gsi, MsiMessage)>,
}

/// The vectors of one function.
#[derive(Debug)]
pub struct Msix {
    platform: Arc<dyn Platform>,
    entries: Vec<Entry>,
    fds: Arc<Vec<EventFd>>,
    control: u16,
}

/// The saved form: control word, and per vector address, data, mask and pending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedMsix {
    /// Message control's enable and mask bits.
    pub control: u16,
    /// One per vector.
    pub vectors: Vec<SavedVector>,
}

/// One vector's saved form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVector {
    /// Low half of the message address.
    pub address_lo: u32,
    /// High half of the message address.
    pub address_hi: u32,
    /// The message's data.
    pub data: u32,
    /// The vector control word.
    pub control: u32,
    /// Whether an interrupt waits for the unmasking.
    pub pending: bool,
}

impl Msix {
    /// `count` vectors, all masked, as after a reset.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn new(platform: Arc<dyn Platform>, count: u16) -> io::Result<Self> {
        let fds = (0..count)
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<Result<Vec<_>, _>>()?;
        let entry = Entry {
            message: MsiMessage::default(),
            control: MASKED,
            connected: None,
        };
        Ok(Msix {
            platform,
            entries: vec![entry; usize::from(count)],
            fds: Arc::new(fds),
            control: 0,
        })
    }

    /// The eventfds, one per vector.
    #[must_use]
    pub fn fds(&self) -> Arc<Vec<EventFd>> {
        Arc::clone(&self.fds)
    }

    /// How many vectors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The guest wrote message control.
    ///
    /// # Errors
    /// When KVM refuses a route; the vector stays unconnected.
    pub fn set_control(&mut self, control: u16) -> Result<(), PlatformError> {
        let control = control & (ENABLE | MASK_ALL);
        if control == self.control {
            return Ok(());
        }
        self.control = control;
        let mut result = Ok(());
        for index in 0..self.entries.len() {
            result = result.and(self.refresh(index));
        }
        result
    }

    /// The guest reads the table (`offset` from its start).
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset.min(END)..).zip(data) {
            let word = self.word(at / 4).unwrap_or(0);
            *byte = word.to_le_bytes().get(low2(at)).copied().unwrap_or(0);
        }
    }

    /// The guest writes the table. Only aligned words and double words have a meaning (§6.8.2);
    /// others are ignored.
    ///
    /// # Errors
    /// When KVM refuses a route; the vector stays unconnected.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Result<(), PlatformError> {
        if !offset.is_multiple_of(4) || !(data.len() == 4 || data.len() == 8) {
            return Ok(());
        }
        let mut touched = None;
        for (word_index, bytes) in (offset.min(END) / 4..).zip(data.chunks_exact(4)) {
            let value = bytes.try_into().map_or(0, u32::from_le_bytes);
            if let Some(index) = self.set_word(word_index, value) {
                touched = Some(index);
            }
        }
        touched.map_or(Ok(()), |index| self.refresh(index))
    }

    /// The guest reads the pending bits (`offset` from their start).
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset.min(END)..).zip(data) {
            *byte = (0..8u64)
                .filter(|bit| {
                    let index = at.saturating_mul(8).saturating_add(*bit);
                    usize::try_from(index).is_ok_and(|i| self.is_pending(i))
                })
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// As after power-on: nothing connected, nothing pending.
    pub fn reset(&mut self) {
        for index in 0..self.entries.len() {
            self.disconnect(index);
            if let Some(entry) = self.entries.get_mut(index) {
                entry.control = MASKED;
                entry.message = MsiMessage::default();
            }
            if let Some(fd) = self.fds.get(index) {
                // Empty already, or emptied now.
                let _ = fd.read();
            }
        }
        self.control = 0;
    }

    /// The saved form.
    #[must_use]
    pub fn save(&self) -> SavedMsix {
        let vectors = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| SavedVector {
                address_lo: entry.message.address_lo,
                address_hi: entry.message.address_hi,
                data: entry.message.data,
                control: entry.control,
                pending: self.is_pending(index),
            });
        SavedMsix {
            control: self.control,
            vectors: vectors.collect(),
        }
    }

    /// Puts a saved form back and connects what was connected.
    ///
    /// # Errors
    /// When the number of vectors differs (`None`), or KVM refuses.
    pub fn restore(&mut self, saved: &SavedMsix) -> Result<(), RestoreError> {
        if saved.vectors.len() != self.entries.len() {
            return Err(RestoreError::Vectors {
                saved: saved.vectors.len(),
                actual: self.entries.len(),
            });
        }
        self.reset();
        self.control = saved.control & (ENABLE | MASK_ALL);
        for (index, vector) in saved.vectors.iter().enumerate() {
            if let Some(entry) = self.entries.get_mut(index) {
                entry.message = MsiMessage {
                    address_lo: vector.address_lo,
                    address_hi: vector.address_hi,
                    data: vector.data,
                };
                entry.control = vector.control & MASKED;
            }
            if let (true, Some(fd)) = (vector.pending, self.fds.get(index)) {
                // Can only fail when full, and it was just emptied.
                let _ = fd.write(1);
            }
            self.refresh(index)?;
        }
        Ok(())
    }

    fn word(&self, word_index: u64) -> Option<u32> {
        let entry = self.entries.get(usize::try_from(word_index / 4).ok()?)?;
        Some(match word_index % 4 {
            0 => entry.message.address_lo,
            1 => entry.message.address_hi,
            2 => entry.message.data,
            _ => entry.control,
        })
    }

    fn set_word(&mut self, word_index: u64, value: u32) -> Option<usize> {
        let index = usize::try_from(word_index / 4).ok()?;
        let entry = self.entries.get_mut(index)?;
        match word_index % 4 {
            0 => entry.message.address_lo = value,
            1 => entry.message.address_hi = value,
            2 => entry.message.data = value,
            _ => entry.control = value & MASKED,
        }
        Some(index)
    }

    /// Connects or disconnects vector `index`, so that KVM has what the table says.
    fn refresh(&mut self, index: usize) -> Result<(), PlatformError> {
        let on = self.control & (ENABLE | MASK_ALL) == ENABLE;
        let (Some(entry), Some(fd)) = (self.entries.get(index).copied(), self.fds.get(index))
        else {
            return Ok(());
        };
        let wanted = (on && entry.control & MASKED == 0).then_some(entry.message);
        if entry.connected.map(|(_, message)| message) == wanted {
            return Ok(());
        }
        if let Some((gsi, _)) = entry.connected {
            self.platform.disconnect(fd, gsi)?;
        }
        let connected = match wanted {
            Some(message) => self
                .platform
                .connect(fd, message)
                .map(|gsi| Some((gsi, message))),
            None => Ok(None),
        };
        if let Some(entry) = self.entries.get_mut(index) {
            entry.connected = connected.as_ref().ok().copied().flatten();
        }
        connected.map(|_| ())
    }

    fn disconnect(&mut self, index: usize) {
        let (Some(entry), Some(fd)) = (self.entries.get_mut(index), self.fds.get(index)) else {
            return;
        };
        if let Some((gsi, _)) = entry.connected.take() {
            // An irqfd that KVM no longer knows is what was wanted.
            let _ = self.platform.disconnect(fd, gsi);
        }
    }

    /// A vector is pending when it is not connected and its counter is not zero.
    fn is_pending(&self, index: usize) -> bool {
        match (self.entries.get(index), self.fds.get(index)) {
            (Some(entry), Some(fd)) if entry.connected.is_none() => is_readable(fd),
            _ => false,
        }
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        self.reset();
    }
}

/// Why saved vectors could not be put back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another number of vectors.
    #[error("the saved form has {saved} MSI-X vectors, the device {actual}")]
    Vectors {
        /// In the saved form.
        saved: usize,
        /// In the device.
        actual: usize,
    },
    /// KVM refused.
    #[error(transparent)]
    Platform(#[from] PlatformError),
}

fn low2(at: u64) -> usize {
    usize::from((at & 3).to_le_bytes()[0])
}

fn is_readable(fd: &EventFd) -> bool {
    poll(&mut [readable(fd.as_raw_fd())], Some(Instant::now())).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::fake::FakePlatform;

    fn msix() -> (Arc<FakePlatform>, Msix) {
        let platform = Arc::new(FakePlatform::default());
        let msix = Msix::new(Arc::clone(&platform) as Arc<dyn Platform>, 3).unwrap();
        (platform, msix)
    }

    fn program(msix: &mut Msix, vector: u64, data: u32) {
        msix.write_table(vector * ENTRY, &0xfee0_0000u32.to_le_bytes())
            .unwrap();
        msix.write_table(vector * ENTRY + 4, &[0; 4]).unwrap();
        msix.write_table(vector * ENTRY + 8, &data.to_le_bytes())
            .unwrap();
        msix.write_table(vector * ENTRY + 12, &[0; 4]).unwrap();
    }

    #[test]
    fn a_vector_is_connected_only_while_enabled_and_unmasked() {
        let (platform, mut msix) = msix();
        let count = || platform.routes.lock().unwrap().len();
        program(&mut msix, 1, 0x31);
        assert_eq!(count(), 0);
        msix.set_control(ENABLE).unwrap();
        assert_eq!(count(), 1);
        msix.set_control(ENABLE | MASK_ALL).unwrap();
        assert_eq!(count(), 0);
        msix.set_control(ENABLE).unwrap();
        msix.write_table(ENTRY + 12, &1u32.to_le_bytes()).unwrap();
        assert_eq!(count(), 0);
        msix.write_table(ENTRY + 12, &0u32.to_le_bytes()).unwrap();
        msix.write_table(ENTRY + 8, &0x44u32.to_le_bytes()).unwrap();
        let routes: Vec<_> = platform
            .routes
            .lock()
            .unwrap()
            .values()
            .map(|m| m.data)
            .collect();
        assert_eq!(routes, [0x44]);
        drop(msix);
        assert_eq!(platform.routes.lock().unwrap().len(), 0);
    }

    #[test]
    fn a_masked_signal_is_pending_and_survives_a_save() {
        let (_, mut one) = msix();
        program(&mut one, 0, 1);
        one.set_control(ENABLE | MASK_ALL).unwrap();
        one.fds()[2].write(1).unwrap();
        let mut pba = [0u8; 8];
        one.read_pba(0, &mut pba);
        assert_eq!(pba[0], 0b100);
        let saved = one.save();
        let (_, mut two) = msix();
        two.restore(&saved).unwrap();
        assert_eq!(two.save(), saved);
        two.read_pba(0, &mut pba);
        assert_eq!(pba[0], 0b100);
    }

    #[test]
    fn accesses_out_of_the_table_are_harmless() {
        let (platform, mut msix) = msix();
        msix.set_control(ENABLE).unwrap();
        for offset in [0, 1, 44, 47, 48, 1 << 20, u64::MAX - 3] {
            for len in [1usize, 2, 3, 4, 8] {
                let mut data = vec![0u8; len];
                msix.read_table(offset, &mut data);
                msix.read_pba(offset, &mut data);
                msix.write_table(offset, &data).unwrap();
            }
        }
        assert!(platform.routes.lock().unwrap().len() <= 3);
    }
}
