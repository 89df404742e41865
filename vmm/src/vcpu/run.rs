//! The thread of one vCPU.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use bulkhead_contract::exit::Reason;
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::affinity;
use super::error::VcpuError;
use super::gate::{Gate, RunState};
use crate::arch::x86_64::ports::Ports;
use crate::lifecycle::Lifecycle;
use crate::pci::PciBus;
use crate::sync::lock;

/// A vCPU thread needs little: the exits are shallow.
const STACK: usize = 256 * 1024;
/// An instruction needs a few exits at most to be finished; this is far beyond.
const MAX_COMPLETIONS: u32 = 64;

/// What answers a vCPU's exits.
#[derive(Debug)]
pub struct Bus {
    /// I/O ports.
    pub ports: Ports,
    /// Memory-mapped registers.
    pub pci: PciBus,
}

/// One vCPU and its thread.
pub struct VcpuThread {
    id: u8,
    fd: Arc<Mutex<VcpuFd>>,
    kick: Kick,
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for VcpuThread {
    /// No thread outlives its machine; the others of it end too.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.gate.request(RunState::Stop);
            self.kick();
            self.join();
        }
    }
}

impl fmt::Debug for VcpuThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuThread")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Takes a vCPU out of KVM_RUN. The flag in the run structure makes a KVM_RUN that is about to
/// begin return at once; the signal ends one that has begun.
#[derive(Clone)]
struct Kick {
    immediate_exit: *const AtomicU8,
    tid: Arc<AtomicI32>,
    /// Keeps the run structure mapped for as long as the pointer lives.
    _fd: Arc<Mutex<VcpuFd>>,
}

// SAFETY: the pointer is to an atomic in a mapping shared with the kernel, which lives as long
// as the vCPU descriptor that is kept beside it.
unsafe impl Send for Kick {}

impl Kick {
    fn flag(&self) -> &AtomicU8 {
        // SAFETY: points into the run structure, mapped while `_fd` lives; the kernel only
        // reads this byte.
        unsafe { &*self.immediate_exit }
    }

    fn send(&self) {
        self.flag().store(1, Ordering::SeqCst);
        let tid = self.tid.load(Ordering::SeqCst);
        if tid > 0 {
            // SAFETY: a plain system call; a thread that has ended gives ESRCH.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGRTMIN()) };
        }
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Gives the kick signal a handler that does nothing, so that it only interrupts.
///
/// # Errors
/// When the system refuses.
pub fn install_kick_handler() -> io::Result<()> {
    vmm_sys_util::signal::register_signal_handler(libc::SIGRTMIN(), on_kick)
        .map_err(io::Error::from)
}

impl VcpuThread {
    /// Starts the thread, which waits in `gate`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(
        id: u8,
        mut fd: VcpuFd,
        bus: Arc<Bus>,
        gate: Arc<Gate>,
        lifecycle: Arc<Lifecycle>,
    ) -> Result<Self, VcpuError> {
        let run = fd.get_kvm_run();
        let immediate_exit = (&raw mut run.immediate_exit)
            .cast::<AtomicU8>()
            .cast_const();
        let fd = Arc::new(Mutex::new(fd));
        let kick = Kick {
            immediate_exit,
            tid: Arc::new(AtomicI32::new(0)),
            _fd: Arc::clone(&fd),
        };
        let body = Body {
            id,
            fd: Arc::clone(&fd),
            kick: kick.clone(),
            bus,
            gate: Arc::clone(&gate),
            lifecycle,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK)
            .spawn(move || body.work())
            .map_err(|source| VcpuError::Thread { vcpu: id, source })?;
        Ok(VcpuThread {
            id,
            fd,
            kick,
            gate,
            thread: Some(thread),
        })
    }

    /// The vCPU's number.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// The vCPU, for a reader of its state. Blocks while it runs: pause first.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.fd)
    }

    /// Has the thread run on these processors of the host; `None` means on all its cgroup allows.
    ///
    /// # Errors
    /// When the cgroup allows none of them.
    pub fn pin(&self, cpus: Option<&[u16]>) -> Result<(), VcpuError> {
        let Some(thread) = &self.thread else {
            return Ok(());
        };
        affinity::set(thread, cpus).map_err(|source| VcpuError::Pin {
            vcpu: self.id,
            source,
        })
    }

    /// Makes the thread look at its gate.
    pub fn kick(&self) {
        self.kick.send();
    }

    /// Waits for the thread's end; the gate says stop, and it was kicked.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}

struct Body {
    id: u8,
    fd: Arc<Mutex<VcpuFd>>,
    kick: Kick,
    bus: Arc<Bus>,
    gate: Arc<Gate>,
    lifecycle: Arc<Lifecycle>,
}

/// What the thread does next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Again,
    /// Interrupted: look at the gate.
    Look,
    /// The VM has ended.
    End,
}

impl Body {
    fn work(self) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.kick.tid.store(tid, Ordering::SeqCst);
        while self.gate.leave() {
            let mut fd = lock(&self.fd);
            let ended = self.run_until_kicked(&mut fd);
            drop(fd);
            self.gate.enter();
            if ended {
                return;
            }
        }
    }

    /// Runs the guest until something else is wanted; true when the VM has ended.
    fn run_until_kicked(&self, fd: &mut VcpuFd) -> bool {
        loop {
            // In this order a kick that comes between is seen: it sets the flag again.
            self.kick.flag().store(0, Ordering::SeqCst);
            if self.gate.requested() != RunState::Run {
                return self.complete(fd);
            }
            loop {
                match self.step(fd) {
                    Next::Again => {}
                    Next::Look => break,
                    Next::End => return true,
                }
            }
        }
    }

    /// Finishes the instruction that caused the last exit, as its effect on registers is only
    /// there after the next KVM_RUN.
    fn complete(&self, fd: &mut VcpuFd) -> bool {
        self.kick.flag().store(1, Ordering::SeqCst);
        for _ in 0..MAX_COMPLETIONS {
            match self.step(fd) {
                Next::Again => {}
                Next::Look => return false,
                Next::End => return true,
            }
        }
        self.lifecycle.end(
            Reason::Error,
            format!("vCPU {}: an instruction does not end", self.id),
        );
        true
    }

    fn step(&self, fd: &mut VcpuFd) -> Next {
        let failure = match fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.pci.read(address, data);
                return Next::Again;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.pci.write(address, data);
                return Next::Again;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.ports.read(port, data);
                return Next::Again;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.bus.ports.write(port, data);
                // After an end nothing more of the guest should run.
                return if self.lifecycle.get().is_some() {
                    Next::End
                } else {
                    Next::Again
                };
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => return Next::Look,
            Ok(VcpuExit::Shutdown) => {
                // The last resort of a kernel that wants a reset.
                self.lifecycle.end(
                    Reason::Reboot,
                    format!("vCPU {}: a triple fault, {}", self.id, registers(fd)),
                );
                return Next::End;
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => format!("system event {kind}"),
            Ok(VcpuExit::InternalError) => internal_error(fd),
            Ok(other) => format!("{other:?}"),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => return Next::Look,
            Err(e) => format!("KVM_RUN failed: {e}"),
        };
        let message = format!("vCPU {}: {failure}, {}", self.id, registers(fd));
        self.lifecycle.end(Reason::Error, message);
        Next::End
    }
}

/// What KVM could not do, by its number (KVM_INTERNAL_ERROR_*: 1 is an instruction it cannot
/// emulate).
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the exit's reason says that this member of the union is the one that is filled.
    let number = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
    format!("KVM internal error {number}")
}

/// The registers that say where a guest was.
fn registers(fd: &VcpuFd) -> String {
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(r), Ok(s)) => format!(
            "rip {:#x} rsp {:#x} rflags {:#x} rax {:#x} rcx {:#x} rdx {:#x} rbx {:#x} rsi {:#x} \
             rdi {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            r.rip,
            r.rsp,
            r.rflags,
            r.rax,
            r.rcx,
            r.rdx,
            r.rbx,
            r.rsi,
            r.rdi,
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer
        ),
        _ => "registers unknown".into(),
    }
}
