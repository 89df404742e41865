//! From a configuration to a machine that waits for its first instruction.

use std::sync::Arc;

use bulkhead_contract::exit::Reason;
use bulkhead_contract::vmm::Config;
use vmm_sys_util::eventfd::EventFd;

use super::growth::Growth;
use super::vcpus::new_vcpu;
use super::{Function, Machine, MachineError, Resources, State, install};
use crate::arch::x86_64::ports::Ports;
use crate::arch::x86_64::{acpi, boot, entry, layout};
use crate::devices::console::ConsoleLog;
use crate::devices::serial::{SavedSerial, SerialPort};
use crate::event_loop::EventLoop;
use crate::lifecycle::Lifecycle;
use crate::memory;
use crate::pci::PciBus;
use crate::timing::Timing;
use crate::vcpu::gate::Gate;
use crate::vcpu::{self, Bus, VcpuThread};
use crate::virtio::pci::{TransportContext, VirtioPci};
use crate::vm::Vm;

/// The I/O thread moves data by system calls on guest memory; its own needs are small.
const IO_STACK: usize = 256 * 1024;

fn eventfd(what: &str) -> Result<EventFd, MachineError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
        .map_err(MachineError::io(format!("making an eventfd for {what}")))
}

impl Machine {
    /// Makes the machine `config` describes; a snapshot's when it names one. It is held: call
    /// [`Machine::boot`].
    ///
    /// # Errors
    /// Whatever is missing or does not fit; nothing is left behind.
    pub fn new(
        config: &Config,
        mut resources: Resources,
        timing: Arc<Timing>,
    ) -> Result<Self, MachineError> {
        match resources.restore.take() {
            Some((state, memory)) => Self::restore(config, resources, &state, &memory, timing),
            None => Self::fresh(config, resources, timing),
        }
    }

    fn fresh(
        config: &Config,
        mut resources: Resources,
        timing: Arc<Timing>,
    ) -> Result<Self, MachineError> {
        let mem = memory::anonymous(config.memory_mib << 20)?;
        let cmdline = boot::cmdline(&config.cmdline)?;
        let rsdp = acpi::write(&mem, config.possible_vcpus())?;
        new_generation(&mem)?;
        let mut kernel = resources
            .kernel
            .take()
            .ok_or_else(|| MachineError::Mismatch("a boot needs a kernel".into()))?;
        let start = boot::load(
            &mem,
            &mut kernel,
            resources.initramfs.as_mut(),
            &cmdline,
            rsdp,
        )?;
        timing.mark("kernel_loaded");

        let growth = Growth::new(config);
        let vm = Vm::new(resources.kvm, mem.clone(), growth.room(&mem)?)?;
        timing.mark("vm_created");
        let mut parts = Parts::new(config, vm, None, timing)?;
        for id in 0..config.vcpus {
            let fd = new_vcpu(&parts.vm, id, config.possible_vcpus())?;
            if id == 0 {
                entry::set_up(&fd, id, start)?;
            }
            parts.add_vcpu(id, fd)?;
        }
        for source in resources.devices {
            let device = source.into_device(None)?;
            let address = parts.bus.pci.free_address()?;
            let function = VirtioPci::new(address, device, parts.transport.clone())?;
            parts.add_function(function)?;
        }
        parts.timing.mark("devices_ready");
        parts.into_machine(None, growth)
    }
}

/// Writes a new, unique generation id.
pub(super) fn new_generation(mem: &memory::GuestMemory) -> Result<(), MachineError> {
    use vm_memory::Bytes;
    let mut id = [0u8; 16];
    // So few bytes are never cut short.
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).map_err(|errno| {
        MachineError::Io {
            attempted: "reading random bytes for the generation id".into(),
            source: errno.into(),
        }
    })?;
    mem.write_slice(&id, Vm::generation_address())
        .map_err(|source| memory::MemoryError::Read(source).into())
}

/// A machine in the making. Dropped half-made, its vCPU threads end with it.
pub(super) struct Parts {
    pub(super) vm: Vm,
    pub(super) bus: Arc<Bus>,
    pub(super) transport: TransportContext,
    pub(super) timing: Arc<Timing>,
    gate: Arc<Gate>,
    vcpus: Vec<VcpuThread>,
    functions: Vec<Function>,
    lifecycle: Arc<Lifecycle>,
}

impl Parts {
    pub(super) fn new(
        config: &Config,
        vm: Vm,
        serial: Option<&SavedSerial>,
        timing: Arc<Timing>,
    ) -> Result<Self, MachineError> {
        vcpu::install_kick_handler().map_err(MachineError::io("setting the kick handler"))?;
        let lifecycle = Arc::new(Lifecycle::new().map_err(MachineError::io("making an eventfd"))?);
        let log = ConsoleLog::new(&config.console.path, config.console.limit_bytes).map_err(
            MachineError::io(format!(
                "opening the console log {}",
                config.console.path.display()
            )),
        )?;
        let line = eventfd("the serial port")?;
        vm.connect_line(&line, layout::SERIAL_GSI)?;
        let port = match serial {
            Some(saved) => SerialPort::restore(line, log, saved)?,
            None => SerialPort::new(line, log),
        };
        let bus = Arc::new(Bus {
            ports: Ports::new(port, Arc::clone(&lifecycle)),
            pci: PciBus::default(),
        });
        let transport = TransportContext {
            mem: vm.memory().clone(),
            platform: Arc::new(vm.platform()?),
            events: EventLoop::new()?,
        };
        Ok(Parts {
            vm,
            bus,
            transport,
            timing,
            gate: Arc::default(),
            vcpus: Vec::new(),
            functions: Vec::new(),
            lifecycle,
        })
    }

    pub(super) fn add_vcpu(&mut self, id: u8, fd: kvm_ioctls::VcpuFd) -> Result<(), MachineError> {
        let thread = VcpuThread::start(
            id,
            fd,
            Arc::clone(&self.bus),
            Arc::clone(&self.gate),
            Arc::clone(&self.lifecycle),
        )?;
        self.vcpus.push(thread);
        Ok(())
    }

    pub(super) fn add_function(&mut self, function: VirtioPci) -> Result<(), MachineError> {
        install(&self.bus, &mut self.functions, function)
    }

    /// Starts the I/O thread; the vCPUs wait.
    pub(super) fn into_machine(
        mut self,
        generation: Option<EventFd>,
        growth: Growth,
    ) -> Result<Machine, MachineError> {
        let events = self.transport.events.clone();
        let looper = events.clone();
        let lifecycle = Arc::clone(&self.lifecycle);
        let io_thread = std::thread::Builder::new()
            .name("io".into())
            .stack_size(IO_STACK)
            .spawn(move || {
                if let Err(error) = looper.run() {
                    lifecycle.end(Reason::Error, format!("the I/O thread: {error}"));
                }
            })
            .map_err(MachineError::io("starting the I/O thread"))?;
        Ok(Machine {
            vm: self.vm,
            bus: Arc::clone(&self.bus),
            gate: Arc::clone(&self.gate),
            vcpus: std::mem::take(&mut self.vcpus),
            functions: std::mem::take(&mut self.functions),
            transport: self.transport,
            events,
            io_thread: Some(io_thread),
            lifecycle: Arc::clone(&self.lifecycle),
            state: State::Held,
            generation,
            growth,
            timing: self.timing,
        })
    }
}
