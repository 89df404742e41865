//! The KVM virtual machine: memory slots, interrupt chip, routes and doorbells.

use std::fmt;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting,
    kvm_clock_data, kvm_irq_routing_entry, kvm_irqchip, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::layout;
use crate::memory::GuestMemory;
use crate::platform::{Gsi, MsiMessage, Platform, PlatformError};
use crate::sync::lock;

/// Routes for message-signalled interrupts; KVM has 4096 in all.
const MAX_ROUTES: usize = 2048;
const KVM_API_VERSION: i32 = 12;
/// Memory slots below this are the boot's.
pub const FIRST_ADDED_SLOT: u32 = 8;

/// Why the virtual machine could not be made, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The descriptor is not /dev/kvm, or its API version is unknown.
    #[error("the KVM descriptor answers API version {0}, {KVM_API_VERSION} is wanted")]
    Api(i32),
    /// KVM lacks something.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// An ioctl failed.
    #[error("{attempted}: {source}")]
    Kvm {
        /// What was attempted.
        attempted: &'static str,
        /// KVM's answer.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Guest memory has no address in this process.
    #[error("guest memory at {0:#x} has no address in this process")]
    NoAddress(u64),
}

fn kvm(attempted: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { attempted, source }
}

/// The virtual machine.
pub struct Vm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    /// Mapped as long as KVM may use it: the RAM of the boot, and room for what is added.
    mem: GuestMemory,
    /// The RAM of the boot alone.
    boot_mem: GuestMemory,
    supported: CpuId,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").finish_non_exhaustive()
    }
}

/// The saved form of what is neither vCPU nor device.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedVm {
    clock: kvm_clock_data,
    chips: [SavedChip; 3],
}

/// One chip of the in-kernel interrupt controller: id and registers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedChip(u32, Vec<u8>);

impl Vm {
    /// A machine with `boot_mem` and an interrupt chip, without vCPUs. `mem` is the same with room
    /// for more, which KVM hears of by [`Vm::add_slot`].
    ///
    /// # Errors
    /// When KVM refuses or lacks something.
    pub fn new(kvm_fd: OwnedFd, boot_mem: GuestMemory, mem: GuestMemory) -> Result<Self, VmError> {
        // SAFETY: the descriptor is owned and given up here.
        let kvm_handle = unsafe { Kvm::from_raw_fd(kvm_fd.into_raw_fd()) };
        let version = kvm_handle.get_api_version();
        if version != KVM_API_VERSION {
            return Err(VmError::Api(version));
        }
        for (cap, name) in [
            (Cap::Irqchip, "an interrupt chip"),
            (Cap::Ioeventfd, "ioeventfd"),
            (Cap::Irqfd, "irqfd"),
            (Cap::ImmediateExit, "immediate exits"),
        ] {
            if !kvm_handle.check_extension(cap) {
                return Err(VmError::Lacks(name));
            }
        }
        let fd = kvm_handle
            .create_vm()
            .map_err(kvm("creating a virtual machine"))?;
        fd.set_tss_address(layout::KVM_TSS)
            .map_err(kvm("setting the task state's address"))?;
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP)
            .map_err(kvm("setting the identity map's address"))?;
        fd.create_irq_chip()
            .map_err(kvm("creating the interrupt chip"))?;
        let supported = kvm_handle
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("reading the supported CPUID"))?;
        let vm = Vm {
            kvm: kvm_handle,
            fd: Arc::new(fd),
            mem,
            boot_mem,
            supported,
        };
        for (slot, region) in (0..FIRST_ADDED_SLOT).zip(vm.boot_mem.iter()) {
            vm.add_slot(slot, region.start_addr(), region.len())?;
        }
        Ok(vm)
    }

    /// Gives the guest a range of [`Vm::memory`], all of it in one region. The guest may run.
    ///
    /// # Errors
    /// When it is not guest memory, or KVM refuses.
    pub fn add_slot(&self, slot: u32, start: GuestAddress, size: u64) -> Result<(), VmError> {
        let outside = || VmError::NoAddress(start.0);
        let region = self.mem.find_region(start).ok_or_else(outside)?;
        let offset = start.0 - region.start_addr().0;
        if size > region.len() - offset {
            return Err(outside());
        }
        let host = region
            .get_host_address(MemoryRegionAddress(offset))
            .map_err(|_| outside())?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start.0,
            memory_size: size,
            userspace_addr: host as u64,
        };
        // SAFETY: the mapping belongs to `self.mem`, is that long (checked above), and outlives
        // the VM.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(kvm("giving memory to the virtual machine"))
    }

    /// Guest memory, with room for what is added later.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.mem
    }

    /// The memory the guest has booted with.
    #[must_use]
    pub fn boot_memory(&self) -> &GuestMemory {
        &self.boot_mem
    }

    /// What KVM supports of CPUID.
    #[must_use]
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.supported
    }

    /// Whether KVM has a deadline timer for the guest.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }

    /// The model-specific registers KVM keeps for a vCPU.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn msr_list(&self) -> Result<Vec<u32>, VmError> {
        let list = self
            .kvm
            .get_msr_index_list()
            .map_err(kvm("listing the MSRs"))?;
        Ok(list.as_slice().to_vec())
    }

    /// A new vCPU.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, VmError> {
        self.fd
            .create_vcpu(id.into())
            .map_err(kvm("creating a vCPU"))
    }

    /// Ties a write to `fd` to line `gsi` of the I/O APIC.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn connect_line(&self, fd: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd
            .register_irqfd(fd, gsi)
            .map_err(kvm("connecting an interrupt line"))
    }

    /// The PCI side's view.
    ///
    /// # Errors
    /// When KVM does not take the first routing table.
    pub fn platform(&self) -> Result<KvmPlatform, PlatformError> {
        let platform = KvmPlatform {
            fd: Arc::clone(&self.fd),
            routes: Mutex::default(),
        };
        platform.set_routes(&[])?;
        Ok(platform)
    }

    /// The saved form. All vCPUs must be paused.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn save(&self) -> Result<SavedVm, VmError> {
        let chip = |id| -> Result<SavedChip, VmError> {
            let mut chip = kvm_irqchip {
                chip_id: id,
                ..Default::default()
            };
            self.fd
                .get_irqchip(&mut chip)
                .map_err(kvm("reading the interrupt chip"))?;
            // SAFETY: every bit pattern of the union is valid as bytes.
            let bytes = unsafe { chip.chip.dummy };
            Ok(SavedChip(
                id,
                bytes.iter().map(|b| b.to_le_bytes()[0]).collect(),
            ))
        };
        let mut clock = self.fd.get_clock().map_err(kvm("reading the clock"))?;
        // What goes with the flags is the host's time, which is another at the restore.
        clock.flags = 0;
        Ok(SavedVm {
            clock,
            chips: [
                chip(KVM_IRQCHIP_PIC_MASTER)?,
                chip(KVM_IRQCHIP_PIC_SLAVE)?,
                chip(KVM_IRQCHIP_IOAPIC)?,
            ],
        })
    }

    /// Puts a saved form back.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn restore(&self, saved: &SavedVm) -> Result<(), VmError> {
        for SavedChip(id, bytes) in &saved.chips {
            let mut chip = kvm_irqchip {
                chip_id: *id,
                ..Default::default()
            };
            // SAFETY: every bit pattern of the union is valid as bytes.
            let target = unsafe { &mut chip.chip.dummy };
            for (target, byte) in target.iter_mut().zip(bytes) {
                *target = i8::from_le_bytes([*byte]);
            }
            self.fd
                .set_irqchip(&chip)
                .map_err(kvm("setting the interrupt chip"))?;
        }
        self.fd
            .set_clock(&saved.clock)
            .map_err(kvm("setting the clock"))
    }

    /// The first bytes of the generation id's page, for a restore to write anew.
    #[must_use]
    pub fn generation_address() -> GuestAddress {
        GuestAddress(layout::VMGENID)
    }
}

/// [`Platform`] by KVM.
pub struct KvmPlatform {
    fd: Arc<VmFd>,
    /// Route `n` has number `IOAPIC_LINES + n`. A free one keeps its old message.
    routes: Mutex<Vec<Route>>,
}

#[derive(Debug, Clone, Copy)]
struct Route {
    message: MsiMessage,
    used: bool,
}

impl fmt::Debug for KvmPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvmPlatform").finish_non_exhaustive()
    }
}

fn platform_error(attempted: &'static str) -> impl Fn(kvm_ioctls::Error) -> PlatformError {
    move |source| PlatformError::Kvm { attempted, source }
}

impl KvmPlatform {
    /// Gives KVM the whole table, which is the only way it takes one.
    fn set_routes(&self, routes: &[Route]) -> Result<(), PlatformError> {
        let mut entries = Vec::with_capacity(routes.len() + layout::IOAPIC_LINES as usize);
        for line in 0..layout::IOAPIC_LINES {
            let mut entry = kvm_irq_routing_entry {
                gsi: line,
                type_: KVM_IRQ_ROUTING_IRQCHIP,
                ..Default::default()
            };
            entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
            entry.u.irqchip.pin = line;
            entries.push(entry);
        }
        for (gsi, route) in (layout::IOAPIC_LINES..).zip(routes) {
            let mut entry = kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..Default::default()
            };
            entry.u.msi.address_lo = route.message.address_lo;
            entry.u.msi.address_hi = route.message.address_hi;
            entry.u.msi.data = route.message.data;
            entries.push(entry);
        }
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| PlatformError::NoRoute(MAX_ROUTES))?;
        self.fd
            .set_gsi_routing(&table)
            .map_err(platform_error("setting the interrupt routes"))
    }

    fn release(&self, gsi: Gsi) {
        let mut routes = lock(&self.routes);
        let index = gsi
            .0
            .checked_sub(layout::IOAPIC_LINES)
            .and_then(|i| usize::try_from(i).ok());
        if let Some(route) = index.and_then(|i| routes.get_mut(i)) {
            route.used = false;
        }
    }

    /// A route for `message`: a free one that has it already, another free one, or a new one.
    fn allocate(&self, message: MsiMessage) -> Result<Gsi, PlatformError> {
        let mut routes = lock(&self.routes);
        let free = |wanted: Option<MsiMessage>| {
            routes
                .iter()
                .position(|r| !r.used && wanted.is_none_or(|m| m == r.message))
        };
        let (index, known) = match (free(Some(message)), free(None)) {
            (Some(index), _) => (index, true),
            (None, Some(index)) => (index, false),
            (None, None) if routes.len() < MAX_ROUTES => {
                routes.push(Route {
                    message,
                    used: false,
                });
                (routes.len() - 1, false)
            }
            (None, None) => return Err(PlatformError::NoRoute(MAX_ROUTES)),
        };
        if let Some(route) = routes.get_mut(index) {
            route.message = message;
        }
        if !known {
            self.set_routes(&routes)?;
        }
        if let Some(route) = routes.get_mut(index) {
            route.used = true;
        }
        let index = u32::try_from(index).map_err(|_| PlatformError::NoRoute(MAX_ROUTES))?;
        Ok(Gsi(layout::IOAPIC_LINES + index))
    }
}

impl Platform for KvmPlatform {
    fn connect(&self, fd: &EventFd, message: MsiMessage) -> Result<Gsi, PlatformError> {
        let gsi = self.allocate(message)?;
        self.fd.register_irqfd(fd, gsi.0).map_err(|e| {
            self.release(gsi);
            platform_error("connecting an interrupt")(e)
        })?;
        Ok(gsi)
    }

    fn disconnect(&self, fd: &EventFd, gsi: Gsi) -> Result<(), PlatformError> {
        let result = self.fd.unregister_irqfd(fd, gsi.0);
        self.release(gsi);
        result.map_err(platform_error("disconnecting an interrupt"))
    }

    fn add_doorbell(&self, fd: &EventFd, address: u64) -> Result<(), PlatformError> {
        self.fd
            .register_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(platform_error("registering a doorbell"))
    }

    fn remove_doorbell(&self, fd: &EventFd, address: u64) -> Result<(), PlatformError> {
        self.fd
            .unregister_ioevent(fd, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(platform_error("removing a doorbell"))
    }
}
