//! A machine that grows: more vCPUs than it began with, and memory by virtio-mem. Both are made
//! for the first resize that wants them; a machine that is never resized has paid for nothing but
//! address space.
//!
//! What the guest does with them is its own: it brings vCPUs online, and plugs and unplugs memory
//! as the device asks.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use bulkhead_contract::vmm::Resize;
use vm_memory::GuestAddress;

use super::growth::MIB;
use super::vcpus::{be_found, new_vcpu};
use super::{Machine, MachineError, State, install};
use crate::devices::mem::region::{BLOCK, Region};
use crate::devices::mem::{MemDevice, MemHandle};
use crate::vcpu::VcpuThread;
use crate::virtio::pci::VirtioPci;
use crate::vm::FIRST_ADDED_SLOT;

/// KVM hears of added memory in slots of this size.
const SLOT: u64 = 1 << 30;

impl Machine {
    /// Provides what `resize` asks for, and notifies the guest.
    ///
    /// # Errors
    /// When the machine was not built for it, or the host lacks a resource. vCPUs added before stay.
    pub fn resize(&mut self, resize: &Resize) -> Result<(), MachineError> {
        self.expect(&[State::Held, State::Running, State::Paused], "resize")?;
        if let Some(vcpus) = resize.vcpus {
            check("vCPUs", vcpus.into(), 1, self.growth.possible_vcpus.into())?;
        }
        let (least, most) = (
            self.growth.boot_mib,
            self.growth.boot_mib + self.growth.size / MIB,
        );
        if let Some(mib) = resize.memory_mib {
            check("MiB of memory", mib, least, most)?;
        }
        if let Some(vcpus) = resize.vcpus {
            self.add_vcpus(vcpus)?;
        }
        match resize.memory_mib {
            Some(mib) => self.want_memory((mib - least) * MIB),
            None => Ok(()),
        }
    }

    /// How much memory the guest has, MiB.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        self.growth.boot_mib + self.growth.plugged() / MIB
    }

    /// Whether the guest has as much memory as it should have.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.growth.handle.as_ref().is_none_or(|handle| {
            let region = handle.region();
            region.plugged() == region.requested()
        })
    }

    /// What is readable when the guest's memory has changed its size.
    #[must_use]
    pub fn memory_changed(&self) -> Option<RawFd> {
        let handle = self.growth.handle.as_ref()?;
        Some(handle.changed().as_raw_fd())
    }

    /// Takes note of that.
    pub fn on_memory_changed(&self) {
        if let Some(handle) = &self.growth.handle {
            // Nothing in it: somebody has looked already.
            let _ = handle.changed().read();
        }
    }

    fn add_vcpus(&mut self, wanted: u8) -> Result<(), MachineError> {
        let there = u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX);
        for id in there..wanted {
            let fd = new_vcpu(&self.vm, id, self.growth.possible_vcpus)?;
            be_found(&fd, id)?;
            // It waits in KVM for the guest to start it, as one of the boot does.
            let thread = VcpuThread::start(
                id,
                fd,
                Arc::clone(&self.bus),
                Arc::clone(&self.gate),
                Arc::clone(&self.lifecycle),
            )?;
            self.vcpus.push(thread);
        }
        Ok(())
    }

    fn want_memory(&mut self, bytes: u64) -> Result<(), MachineError> {
        let handle = match &self.growth.handle {
            Some(handle) => handle.clone(),
            None if bytes < BLOCK => return Ok(()),
            None => self.plug_device()?,
        };
        // Before the guest hears of it: what it may use must be there.
        let usable = handle.region().usable_for(bytes / BLOCK * BLOCK);
        while self.growth.known < usable {
            let size = SLOT.min(self.growth.size - self.growth.known);
            let slot = u32::try_from(self.growth.known / SLOT).unwrap_or(u32::MAX);
            let start = GuestAddress(self.growth.base + self.growth.known);
            let slot = FIRST_ADDED_SLOT.saturating_add(slot);
            self.vm.add_slot(slot, start, size)?;
            self.growth.known += size;
        }
        handle.request(bytes);
        Ok(())
    }

    fn plug_device(&mut self) -> Result<MemHandle, MachineError> {
        let region = Region::new(self.growth.base, self.growth.size);
        let handle = MemHandle::new(region)
            .map_err(MachineError::io("making eventfds for the memory device"))?;
        let address = self.bus.pci.free_address()?;
        let device = Box::new(MemDevice::new(handle.clone()));
        let function = VirtioPci::new(address, device, self.transport.clone())?;
        install(&self.bus, &mut self.functions, function)?;
        self.growth.handle = Some(handle.clone());
        Ok(handle)
    }
}

fn check(what: &'static str, wanted: u64, least: u64, most: u64) -> Result<(), MachineError> {
    if (least..=most).contains(&wanted) {
        return Ok(());
    }
    Err(MachineError::Size {
        what,
        wanted,
        least,
        most,
    })
}
