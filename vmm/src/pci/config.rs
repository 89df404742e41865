//! A type-0 configuration space (PCI local bus spec 3.0 §6.1) of one function with one 32-bit
//! memory BAR, capabilities, and no interrupt pin.

use serde::{Deserialize, Serialize};

/// Bytes of configuration space a function has. Beyond it the ECAM reads zero, as there are no
/// extended capabilities.
pub const SIZE: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAP_POINTER: usize = 0x34;
const FIRST_CAP: usize = 0x40;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const MULTI_FUNCTION: u8 = 0x80;

/// Who a function is.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The registers, and which of their bits the guest may write.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bar_size: u32,
    next_cap: usize,
    last_cap_link: usize,
}

/// The part the guest can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedConfig {
    /// The command register.
    pub command: u16,
    /// The BAR's address.
    pub bar: u32,
}

impl ConfigSpace {
    /// Registers of `identity` with a BAR of `bar_size` bytes (a power of two, at least 16) at
    /// `bar`. Every function says it may have siblings (bit 7 of the header type), as disks
    /// come to any function of a slot later.
    #[must_use]
    pub fn new(identity: &Identity, bar: u32, bar_size: u32) -> Self {
        let mut space = ConfigSpace {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bar_size,
            next_cap: FIRST_CAP,
            last_cap_link: CAP_POINTER,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        let [class, subclass, interface] = identity.class;
        space.put(REVISION, &[identity.revision, interface, subclass, class]);
        space.put(HEADER_TYPE, &[MULTI_FUNCTION]);
        space.put(BAR0, &(bar & !(bar_size - 1)).to_le_bytes());
        space.put(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(
            COMMAND,
            &(COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF).to_le_bytes(),
        );
        // Sizing (§6.2.5.1): the low bits of the BAR do not take ones.
        space.allow(BAR0, &(!(bar_size - 1)).to_le_bytes());
        // Cache line size and interrupt line are scratch registers.
        space.allow(0x0c, &[0xff]);
        space.allow(0x3c, &[0xff]);
        space
    }

    /// Appends a capability: `body` follows its id and link. Returns its offset, or `None` when
    /// there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<usize> {
        let at = self.next_cap;
        let end = at.checked_add(2 + body.len())?;
        if end > SIZE {
            return None;
        }
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        let link = self.last_cap_link;
        self.put(link, &[u8::try_from(at).ok()?]);
        self.last_cap_link = at + 1;
        self.next_cap = (end + 3) & !3;
        Some(at)
    }

    /// Reads; bytes beyond the end are zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self
                .bytes
                .get(offset.wrapping_add(index))
                .copied()
                .unwrap_or(0);
        }
    }

    /// Writes the bits that are writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            let at = offset.wrapping_add(index);
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// Address of the BAR while the function decodes memory.
    #[must_use]
    pub fn decoded_bar(&self) -> Option<u32> {
        let saved = self.save();
        (saved.command & COMMAND_MEMORY != 0).then_some(saved.bar)
    }

    /// Length of the BAR.
    #[must_use]
    pub fn bar_size(&self) -> u32 {
        self.bar_size
    }

    /// A 16-bit register.
    #[must_use]
    pub fn word(&self, offset: usize) -> u16 {
        let mut word = [0; 2];
        self.read(offset, &mut word);
        u16::from_le_bytes(word)
    }

    /// What the guest changed.
    #[must_use]
    pub fn save(&self) -> SavedConfig {
        let mut bar = [0; 4];
        self.read(BAR0, &mut bar);
        SavedConfig {
            command: self.word(COMMAND),
            bar: u32::from_le_bytes(bar),
        }
    }

    /// Puts it back, as if the guest had written it.
    pub fn restore(&mut self, saved: &SavedConfig) {
        self.write(COMMAND, &saved.command.to_le_bytes());
        self.write(BAR0, &saved.bar.to_le_bytes());
    }

    /// Sets bytes whatever the guest may write.
    pub fn put(&mut self, offset: usize, bytes: &[u8]) {
        for (target, value) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *target = *value;
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (target, value) in self.writable.iter_mut().skip(offset).zip(mask) {
            *target = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        };
        ConfigSpace::new(&identity, 0xc000_8000, 0x8000)
    }

    fn read32(space: &ConfigSpace, offset: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_bar_can_be_sized_and_moved() {
        let mut space = space();
        assert_eq!(space.decoded_bar(), None);
        space.write(BAR0, &u32::MAX.to_le_bytes());
        assert_eq!(read32(&space, BAR0), 0xffff_8000);
        space.write(BAR0, &0xc123_4567u32.to_le_bytes());
        space.write(COMMAND, &u16::MAX.to_le_bytes());
        assert_eq!(space.decoded_bar(), Some(0xc123_0000));
        assert_eq!(space.word(COMMAND), 0x406);
    }

    #[test]
    fn identity_cannot_be_written_and_odd_accesses_are_harmless() {
        let mut space = space();
        for offset in 0..300 {
            space.write(offset, &[0xff; 9]);
        }
        assert_eq!(read32(&space, 0), 0x1042_1af4);
        let mut data = [0xaa; 8];
        space.read(254, &mut data);
        assert_eq!(data[2..], [0; 6]);
        space.read(usize::MAX, &mut data);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = space();
        let one = space.add_capability(9, &[1; 14], &[]).unwrap();
        let two = space.add_capability(0x11, &[2; 10], &[0, 0xff]).unwrap();
        assert_eq!((one, two), (0x40, 0x50));
        let mut head = [0; 1];
        space.read(CAP_POINTER, &mut head);
        assert_eq!(head[0], 0x40);
        let mut cap = [0; 2];
        space.read(one, &mut cap);
        assert_eq!(cap, [9, 0x50]);
        space.write(two + 2, &[7, 7]);
        space.read(two + 2, &mut cap);
        assert_eq!(cap, [2, 7]);
        assert_eq!(space.add_capability(9, &[0; 200], &[]), None);
    }

    #[test]
    fn the_saved_form_puts_registers_back() {
        let mut one = space();
        one.write(BAR0, &0xc111_0000u32.to_le_bytes());
        one.write(COMMAND, &6u16.to_le_bytes());
        let mut two = space();
        two.restore(&one.save());
        assert_eq!(two.decoded_bar(), Some(0xc111_0000));
        assert_eq!(two.save(), one.save());
    }
}
