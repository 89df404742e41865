//! Saving a paused machine, and making one that continues from there.
//!
//! Two files: the state as one JSON document, the memory as a sparse image. The memory file is
//! mapped private, so any number of machines can continue from one snapshot.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::sync::Arc;

use bulkhead_contract::vmm::Config;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::build::{Parts, new_generation};
use super::growth::Growth;
use super::{Machine, MachineError, Resources, Source, State};
use crate::arch::x86_64::layout;
use crate::arch::x86_64::vcpu_state::{self, SavedVcpu};
use crate::devices::serial::SavedSerial;
use crate::memory;
use crate::sync::lock;
use crate::timing::Timing;
use crate::virtio::pci::{SavedFunction, VirtioPci};
use crate::vm::{SavedVm, Vm};

const MAGIC: &str = "bulkhead-snapshot";
const VERSION: u32 = 1;
/// A state file is some dozens of KiB; anything larger is something else.
const MAX_STATE: u64 = 64 << 20;

/// The state file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    magic: String,
    version: u32,
    memory_bytes: u64,
    vm: SavedVm,
    vcpus: Vec<SavedVcpu>,
    serial: SavedSerial,
    functions: Vec<SavedFunction>,
}

impl Machine {
    /// Writes state and memory. The machine must be paused and stays so.
    ///
    /// # Errors
    /// When it is not paused, a part cannot be saved or a file not be written.
    pub fn snapshot(&self, state_file: &File, memory_file: &File) -> Result<(), MachineError> {
        self.expect(&[State::Paused], "write a snapshot")?;
        if self.growth.is_active() {
            return Err(MachineError::Grown);
        }
        let msr_list = self.vm.msr_list()?;
        let vcpus = self
            .vcpus
            .iter()
            .map(|vcpu| vcpu_state::save(&vcpu.fd(), vcpu.id(), &msr_list))
            .collect::<Result<Vec<_>, _>>()?;
        let functions = self
            .functions
            .iter()
            .map(|function| lock(function).save())
            .collect::<Result<Vec<_>, _>>()?;
        let snapshot = Snapshot {
            magic: MAGIC.into(),
            version: VERSION,
            memory_bytes: memory::total(self.vm.boot_memory()),
            vm: self.vm.save()?,
            vcpus,
            serial: self.bus.ports.serial().save(),
            functions,
        };
        memory::write_to_file(self.vm.boot_memory(), memory_file)?;
        write_state(&snapshot, state_file)
            .map_err(MachineError::io("writing the state of the snapshot"))
    }

    /// A machine that continues where a snapshot stopped.
    pub(super) fn restore(
        config: &Config,
        resources: Resources,
        state_file: &File,
        memory_file: &File,
        timing: Arc<Timing>,
    ) -> Result<Self, MachineError> {
        let snapshot = read_state(state_file)?;
        if snapshot.memory_bytes != config.memory_mib << 20 {
            return Err(MachineError::Mismatch(format!(
                "it has {} MiB of memory",
                snapshot.memory_bytes >> 20
            )));
        }
        if snapshot.vcpus.len() != usize::from(config.vcpus) {
            return Err(MachineError::Mismatch(format!(
                "it has {} vCPUs",
                snapshot.vcpus.len()
            )));
        }
        timing.mark("state_read");
        let mem = memory::from_file(memory_file, snapshot.memory_bytes)?;
        new_generation(&mem)?;
        let growth = Growth::new(config);
        let vm = Vm::new(resources.kvm, mem.clone(), growth.room(&mem)?)?;
        timing.mark("vm_created");
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(MachineError::io("making an eventfd for the generation id"))?;
        vm.connect_line(&line, layout::GED_GSI)?;

        let mut parts = Parts::new(config, vm, Some(&snapshot.serial), timing)?;
        // vCPUs and interrupt chip before the devices: those raise interrupts as soon as they
        // are back, which the state of a local APIC set later would wipe out.
        for saved in &snapshot.vcpus {
            let fd = parts.vm.create_vcpu(saved.id())?;
            saved.restore(&fd)?;
            parts.add_vcpu(saved.id(), fd)?;
        }
        parts.vm.restore(&snapshot.vm)?;
        parts.timing.mark("vcpus_restored");
        restore_functions(&mut parts, resources.devices, &snapshot.functions)?;
        parts.timing.mark("devices_ready");
        parts.into_machine(Some(line), growth)
    }
}

/// Pairs what the configuration gives with what was saved, by id.
fn restore_functions(
    parts: &mut Parts,
    mut sources: Vec<Source>,
    saved: &[SavedFunction],
) -> Result<(), MachineError> {
    for saved in saved {
        let index = sources
            .iter()
            .position(|s| s.id() == saved.id)
            .ok_or_else(|| {
                MachineError::Mismatch(format!("its device {} is not configured", saved.id))
            })?;
        let device = sources
            .remove(index)
            .into_device(Some(&saved.device.state))?;
        let mut function = VirtioPci::new(saved.address, device, parts.transport.clone())?;
        function.restore(saved)?;
        parts.add_function(function)?;
    }
    match sources.first() {
        Some(extra) => Err(MachineError::Mismatch(format!(
            "device {} is not in it; attach it after the start",
            extra.id()
        ))),
        None => Ok(()),
    }
}

fn write_state(snapshot: &Snapshot, mut file: &File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    let mut writer = BufWriter::new(file);
    serde_json::to_writer(&mut writer, snapshot)?;
    writer.flush()
}

fn read_state(mut file: &File) -> Result<Snapshot, MachineError> {
    let io = |source| MachineError::Io {
        attempted: "reading the state of the snapshot".into(),
        source,
    };
    file.rewind().map_err(io)?;
    let mut bytes = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut bytes).map_err(io)?;
    let snapshot: Snapshot =
        serde_json::from_slice(&bytes).map_err(|e| MachineError::BadState(e.to_string()))?;
    if snapshot.magic != MAGIC || snapshot.version != VERSION {
        return Err(MachineError::BadState(format!(
            "it is {} version {}, this VMM reads {MAGIC} version {VERSION}",
            snapshot.magic, snapshot.version
        )));
    }
    Ok(snapshot)
}
