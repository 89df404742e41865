//! The live machine: what the configuration becomes, and everything that can be asked of it.
//!
//! `resources` takes the descriptors, `build` makes a machine that boots, `vcpus` its vCPUs;
//! `resize` adds to one that runs what `growth` says it may have, `pin` says where its vCPUs run, `snapshot` saves one and makes one
//! that continues, `metrics` counts. One thread works on a machine at a time (the control thread);
//! vCPU threads and the I/O thread run beside it.

mod build;
mod error;
mod growth;
mod memory_map;
mod metrics;
mod pin;
mod resize;
mod resources;
mod snapshot;
mod vcpus;

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use self::growth::Growth;
use crate::devices::block::Part;
use crate::devices::net::NetConfig;
use crate::event_loop::EventLoop;
use crate::lifecycle::Lifecycle;
use crate::sync::lock;
use crate::timing::Timing;
use crate::vcpu::gate::{Gate, RunState};
use crate::vcpu::{Bus, VcpuError, VcpuThread};
use crate::virtio::pci::{TransportContext, VirtioPci};
use crate::vm::Vm;

pub use error::MachineError;
pub use memory_map::MemoryMap;
pub use resources::{Resources, Source, take};

/// How long vCPU threads may take to leave the guest. They need microseconds; this is for a
/// machine under load.
const PAUSE_LIMIT: Duration = Duration::from_secs(5);

/// What a machine is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Made, and waiting for `boot`.
    Held,
    Running,
    Paused,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Held => "held",
            State::Running => "running",
            State::Paused => "paused",
        }
    }
}

type Function = Arc<Mutex<VirtioPci>>;

/// A virtual machine and its threads.
#[derive(Debug)]
pub struct Machine {
    vm: Vm,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    vcpus: Vec<VcpuThread>,
    functions: Vec<Function>,
    transport: TransportContext,
    events: EventLoop,
    io_thread: Option<JoinHandle<()>>,
    lifecycle: Arc<Lifecycle>,
    state: State,
    /// Interrupts the guest about a new generation id, once it runs.
    generation: Option<vmm_sys_util::eventfd::EventFd>,
    /// What can be added to it.
    growth: Growth,
    timing: Arc<Timing>,
}

/// Puts a function on the bus at its address.
fn install(
    bus: &Bus,
    functions: &mut Vec<Function>,
    function: VirtioPci,
) -> Result<(), MachineError> {
    let address = function.address();
    let function: Function = Arc::new(Mutex::new(function));
    bus.pci.insert(address, Arc::clone(&function) as Arc<_>)?;
    functions.push(function);
    Ok(())
}

impl Machine {
    /// Lets a held machine run.
    ///
    /// # Errors
    /// When it is not held.
    pub fn boot(&mut self) -> Result<(), MachineError> {
        self.expect(&[State::Held], "boot")?;
        self.run();
        self.timing.mark("vcpus_running");
        Ok(())
    }

    /// Stops vCPUs and devices, so that nothing changes any more.
    ///
    /// # Errors
    /// When something does not stop in time; the machine then keeps running.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        if self.state == State::Paused {
            return Ok(());
        }
        self.expect(&[State::Running], "pause")?;
        self.stop_vcpus(RunState::Pause)?;
        let quiesced = self.functions.iter().try_for_each(|f| lock(f).quiesce());
        if let Err(error) = quiesced {
            // Half-stopped is worse than running: the devices that stopped are started again.
            for function in &self.functions {
                lock(function).resume()?;
            }
            self.run();
            return Err(error.into());
        }
        self.state = State::Paused;
        Ok(())
    }

    /// Undoes a pause.
    ///
    /// # Errors
    /// When a device cannot resume, which leaves the machine paused.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        if self.state == State::Running {
            return Ok(());
        }
        self.expect(&[State::Paused], "resume")?;
        for function in &self.functions {
            lock(function).resume()?;
        }
        for vcpu in &self.vcpus {
            // Tells the guest's watchdog that it was stopped (KVM_KVMCLOCK_CTRL); a guest
            // without kvm-clock has no such watchdog and gives an error.
            let _ = vcpu.fd().kvmclock_ctrl();
        }
        self.run();
        Ok(())
    }

    /// Adds a disk and says where it is.
    ///
    /// # Errors
    /// When there is one of this id, no slot, or the files cannot be a disk.
    pub fn attach_disk(
        &mut self,
        id: &str,
        parts: Vec<Part>,
        read_only: bool,
        queues: u16,
    ) -> Result<String, MachineError> {
        self.attach(Source::disk(id, parts, read_only, queues))
    }

    /// Adds a network device and says where it is.
    ///
    /// # Errors
    /// When there is one of this id, no slot, or the descriptors are no tap and vhost-net.
    pub fn attach_net(&mut self, net: NetConfig) -> Result<String, MachineError> {
        self.attach(Source::Net(net))
    }

    fn attach(&mut self, source: Source) -> Result<String, MachineError> {
        if self.functions.iter().any(|f| lock(f).id() == source.id()) {
            return Err(MachineError::Exists(source.id().to_owned()));
        }
        let device = source.into_device(None)?;
        let address = self.bus.pci.free_address()?;
        let function = VirtioPci::new(address, device, self.transport.clone())?;
        install(&self.bus, &mut self.functions, function)?;
        Ok(address.to_string())
    }

    /// Takes away a disk the guest has let go of.
    ///
    /// # Errors
    /// When there is no such disk, or the guest's driver still runs it.
    pub fn detach(&mut self, id: &str) -> Result<(), MachineError> {
        const BLOCK: u32 = 2;
        let found = self.functions.iter().position(|f| {
            let function = lock(f);
            function.id() == id && function.device_type() == BLOCK
        });
        let Some(index) = found else {
            return Err(MachineError::NotFound(id.to_owned()));
        };
        let Some(function) = self.functions.get(index) else {
            return Err(MachineError::NotFound(id.to_owned()));
        };
        let address = {
            let mut function = lock(function);
            if function.is_active() {
                return Err(MachineError::InUse(id.to_owned()));
            }
            function.shut_down();
            function.address()
        };
        self.bus.pci.remove(address);
        self.functions.remove(index);
        Ok(())
    }

    /// What is readable when the serial console has an unfinished line to write.
    #[must_use]
    pub fn console_timer(&self) -> RawFd {
        self.bus.ports.serial().log().timer()
    }

    /// Writes that line.
    pub fn on_console_timer(&self) {
        self.bus.ports.serial().log().on_timer();
    }

    /// Where the end of the VM is reported.
    #[must_use]
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// Ends everything: vCPUs first, then the devices, which finish what they have in hand.
    /// Returns the last console output.
    pub fn shut_down(&mut self) -> String {
        let stopped = self.stop_vcpus(RunState::Stop).is_ok();
        if stopped {
            for vcpu in &mut self.vcpus {
                vcpu.join();
            }
            for function in &self.functions {
                let mut function = lock(function);
                // A device that does not come to rest is cut off; the process ends anyway.
                let _ = function.quiesce();
                function.shut_down();
            }
            self.events.stop();
            if let Some(thread) = self.io_thread.take() {
                let _ = thread.join();
            }
        }
        let mut serial = self.bus.ports.serial();
        serial.log().on_timer();
        serial.log().tail()
    }

    fn run(&mut self) {
        self.state = State::Running;
        self.gate.request(RunState::Run);
        if let Some(line) = self.generation.take() {
            // The line is edge-triggered and routed; a full counter means it is pending.
            let _ = line.write(1);
        }
    }

    fn stop_vcpus(&mut self, wanted: RunState) -> Result<(), VcpuError> {
        self.gate.request(wanted);
        for vcpu in &self.vcpus {
            vcpu.kick();
        }
        self.gate.wait_all_in(PAUSE_LIMIT).map_err(|stuck| {
            if wanted == RunState::Pause {
                self.gate.request(RunState::Run);
            }
            VcpuError::Stuck(stuck)
        })
    }

    fn expect(&self, allowed: &[State], attempted: &'static str) -> Result<(), MachineError> {
        if allowed.contains(&self.state) {
            return Ok(());
        }
        Err(MachineError::WrongState {
            attempted,
            state: self.state.name(),
        })
    }
}
