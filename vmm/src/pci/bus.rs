//! The bus: which function sits where, and who answers an access to the ECAM or to a BAR.
//!
//! One flat bus with 31 slots of 8 functions. The bus holds no lock while a function works, so
//! a slow one keeps no other waiting.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::arch::x86_64::layout;
use crate::sync::lock;

/// Functions per slot.
const FUNCTIONS: u8 = 8;
/// Slot 0 is where a host bridge would be; devices start at 1.
const FIRST_DEVFN: u8 = FUNCTIONS;
/// Bytes of configuration space per function in the ECAM.
const ECAM_PER_FUNCTION: u64 = 4096;

/// Why a function could not be put on the bus or taken off.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// All slots are taken.
    #[error("no PCI slot is left; a VM has room for {max} devices", max = 31 * 8)]
    NoSlot,
    /// Something sits there already.
    #[error("the PCI address {0} is taken")]
    Taken(Address),
}

/// Slot and function on the bus, as `devfn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Address(u8);

impl Address {
    /// From a `devfn` number, unless it is in slot 0.
    #[must_use]
    pub fn new(devfn: u8) -> Option<Self> {
        (devfn >= FIRST_DEVFN).then_some(Address(devfn))
    }

    /// The address of the BAR a function gets before the guest moves it.
    #[must_use]
    pub fn default_bar(self, size: u32) -> u32 {
        let base = u32::try_from(layout::PCI_WINDOW).unwrap_or(0);
        base.saturating_add(size.saturating_mul(u32::from(self.0)))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.{}", self.0 / FUNCTIONS, self.0 % FUNCTIONS)
    }
}

/// One function, as the bus sees it. Offsets and data come from the guest.
pub trait PciFunction: Send + fmt::Debug {
    /// Reads configuration space.
    fn config_read(&mut self, offset: usize, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&mut self, offset: usize, data: &[u8]);
    /// The address range of the BAR while it is decoded.
    fn decoded(&self) -> Option<(u64, u64)>;
    /// Reads from the BAR. `data` is zeroed.
    fn bar_read(&mut self, offset: u64, data: &mut [u8]);
    /// Writes to the BAR.
    fn bar_write(&mut self, offset: u64, data: &[u8]);
}

type Function = Arc<Mutex<dyn PciFunction>>;

#[derive(Default)]
struct Inner {
    functions: BTreeMap<Address, Function>,
    /// Decoded BARs: base to length and owner.
    bars: BTreeMap<u64, (u64, Address)>,
}

/// The bus.
#[derive(Default)]
pub struct PciBus(Mutex<Inner>);

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.inner().functions.keys())
            .finish()
    }
}

impl PciBus {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// The lowest free address whose slot the guest would look into: function 0 of a slot is
    /// filled first, as Linux looks at the others only when it is there.
    ///
    /// # Errors
    /// When the bus is full.
    pub fn free_address(&self) -> Result<Address, PciError> {
        let inner = self.inner();
        let taken = |devfn: u8| inner.functions.contains_key(&Address(devfn));
        (FIRST_DEVFN..=u8::MAX)
            .find(|devfn| {
                let first = devfn - devfn % FUNCTIONS;
                !taken(*devfn) && (*devfn == first || taken(first))
            })
            .map(Address)
            .ok_or(PciError::NoSlot)
    }

    /// Puts a function on the bus. The guest finds it when it looks again.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn insert(&self, address: Address, function: Function) -> Result<(), PciError> {
        let decoded = lock(&function).decoded();
        let mut inner = self.inner();
        if inner.functions.contains_key(&address) {
            return Err(PciError::Taken(address));
        }
        inner.functions.insert(address, function);
        if let Some((base, len)) = decoded {
            inner.bars.insert(base, (len, address));
        }
        Ok(())
    }

    /// Takes a function off the bus. A guest that still talks to it reads all ones.
    pub fn remove(&self, address: Address) {
        let mut inner = self.inner();
        inner.functions.remove(&address);
        inner.bars.retain(|_, (_, owner)| *owner != address);
    }

    /// A guest read from the ECAM or a BAR window; all ones where nothing answers, as on a bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some(Target::Config(function, offset)) => {
                data.fill(0);
                lock(&function).config_read(offset, data);
            }
            Some(Target::Bar(function, offset)) => {
                data.fill(0);
                lock(&function).bar_read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// A guest write to the ECAM or a BAR window; ignored where nothing answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address) {
            Some(Target::Config(function, offset)) => {
                let decoded = {
                    let mut function = lock(&function);
                    function.config_write(offset, data);
                    function.decoded()
                };
                if let Some(owner) = ecam_function(address) {
                    self.move_bar(owner, decoded);
                }
            }
            Some(Target::Bar(function, offset)) => lock(&function).bar_write(offset, data),
            None => {}
        }
    }

    /// Records where a function's BAR is now. A BAR the guest puts over another's base takes
    /// its place; the guest hurts only itself.
    fn move_bar(&self, owner: Address, decoded: Option<(u64, u64)>) {
        let mut inner = self.inner();
        if !inner.functions.contains_key(&owner) {
            return;
        }
        let unchanged = match decoded {
            Some((base, len)) => inner.bars.get(&base) == Some(&(len, owner)),
            None => !inner.bars.values().any(|(_, o)| *o == owner),
        };
        if unchanged {
            return;
        }
        inner.bars.retain(|_, (_, o)| *o != owner);
        if let Some((base, len)) = decoded {
            inner.bars.insert(base, (len, owner));
        }
    }

    fn find(&self, address: u64) -> Option<Target> {
        let inner = self.inner();
        if let Some(owner) = ecam_function(address) {
            let function = inner.functions.get(&owner)?;
            let offset = usize::try_from(address % ECAM_PER_FUNCTION).ok()?;
            return Some(Target::Config(Arc::clone(function), offset));
        }
        let (base, (len, owner)) = inner.bars.range(..=address).next_back()?;
        let offset = address - base;
        if offset >= *len {
            return None;
        }
        inner
            .functions
            .get(owner)
            .map(|f| Target::Bar(Arc::clone(f), offset))
    }
}

enum Target {
    Config(Function, usize),
    Bar(Function, u64),
}

/// Which function's configuration space an address of the ECAM is in.
fn ecam_function(address: u64) -> Option<Address> {
    let offset = address
        .checked_sub(layout::ECAM)
        .filter(|o| *o < layout::ECAM_SIZE)?;
    u8::try_from(offset / ECAM_PER_FUNCTION).ok().map(Address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::config::{ConfigSpace, Identity};

    #[derive(Debug)]
    struct Plain(ConfigSpace, Vec<(u64, Vec<u8>)>);
    impl PciFunction for Plain {
        fn config_read(&mut self, offset: usize, data: &mut [u8]) {
            self.0.read(offset, data);
        }
        fn config_write(&mut self, offset: usize, data: &[u8]) {
            self.0.write(offset, data);
        }
        fn decoded(&self) -> Option<(u64, u64)> {
            self.0
                .decoded_bar()
                .map(|b| (u64::from(b), u64::from(self.0.bar_size())))
        }
        fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0x7f).unwrap());
        }
        fn bar_write(&mut self, offset: u64, data: &[u8]) {
            self.1.push((offset, data.to_vec()));
        }
    }

    fn plain(address: Address) -> Arc<Mutex<Plain>> {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        };
        let space = ConfigSpace::new(&identity, address.default_bar(0x8000), 0x8000);
        Arc::new(Mutex::new(Plain(space, Vec::new())))
    }

    fn config(address: Address, offset: u64) -> u64 {
        layout::ECAM + u64::from(address.0) * 4096 + offset
    }

    #[test]
    fn addresses_are_given_so_that_a_scan_finds_them() {
        let bus = PciBus::default();
        let mut all = Vec::new();
        while let Ok(address) = bus.free_address() {
            bus.insert(address, plain(address)).unwrap();
            all.push(address);
        }
        assert_eq!(all.len(), 248);
        assert_eq!(all[0].to_string(), "00:01.0");
        assert_eq!(all[247].to_string(), "00:1f.7");
        bus.remove(all[10]);
        bus.remove(all[8]);
        assert_eq!(bus.free_address().unwrap(), all[8], "function 0 first");
        assert!(matches!(
            bus.insert(all[0], plain(all[0])),
            Err(PciError::Taken(_))
        ));
    }

    #[test]
    fn a_moved_bar_is_followed_and_a_hole_reads_ones() {
        let bus = PciBus::default();
        let address = bus.free_address().unwrap();
        bus.insert(address, plain(address)).unwrap();
        let mut data = [0u8; 4];
        bus.read(config(address, 0), &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x1042_1af4);
        bus.read(layout::ECAM, &mut data);
        assert_eq!(data, [0xff; 4]);
        let first = u64::from(address.default_bar(0x8000));
        bus.read(first + 5, &mut data);
        assert_eq!(data, [0xff; 4], "not decoded yet");
        bus.write(config(address, 4), &[6, 0]);
        bus.read(first + 5, &mut data);
        assert_eq!(data, [5; 4]);
        bus.write(config(address, 0x10), &0xcfff_8000u32.to_le_bytes());
        bus.read(first + 5, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.read(0xcfff_ffff, &mut data);
        assert_eq!(data, [0x7f; 4]);
        bus.read(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.remove(address);
        bus.read(0xcfff_ffff, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
