//! The control socket: requests of the daemon, one after the other, and the end of the VM.
//!
//! All of it on the main thread: it waits for connections, requests, the end, and the console's
//! timer. A client that stops in the middle of a request is given up after a time limit.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use bulkhead_contract::exit::Reason;
use bulkhead_contract::vmm::{Answer, AttachDisk, Done, ErrorKind, Failure, MAX_PARTS, Request};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::api::{self, ConfigError};
use crate::devices::block::Part;
use crate::devices::net::NetConfig;
use crate::lifecycle::End;
use crate::machine::{Machine, MachineError, MemoryMap};
use crate::poll::{poll, readable};

/// The longest message in both directions.
const MAX_MESSAGE: usize = 64 * 1024;
/// The most descriptors with one request.
const MAX_FDS: usize = MAX_PARTS;
/// The daemon is one client, or two while one version hands over to the next.
const MAX_CONNECTIONS: usize = 8;
/// How long the rest of a request, or the taking of an answer, may be waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The longest a client may wait for the guest to follow a resize.
const MAX_WAIT_MS: u32 = 600_000;

/// Why serving ended, or a request was not understood.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket could not be made.
    #[error("binding the control socket: {0}")]
    Bind(#[source] io::Error),
    /// Waiting failed.
    #[error("waiting for control requests: {0}")]
    Wait(#[source] io::Error),
    /// A client is gone, or too slow.
    #[error("talking to a control client: {0}")]
    Client(#[source] io::Error),
    /// A message is longer than allowed.
    #[error("a control message of {0} bytes; at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// Not the descriptors that are wanted.
    #[error("the request came with {actual} descriptors; it wants {wanted}")]
    Descriptors {
        /// What it wants.
        wanted: usize,
        /// What came.
        actual: usize,
    },
    /// The request makes no sense.
    #[error(transparent)]
    Request(#[from] ConfigError),
    /// The machine refused.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

impl ControlError {
    /// The kind a program goes by.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            ControlError::Request(_)
            | ControlError::TooLong(_)
            | ControlError::Descriptors { .. } => ErrorKind::BadRequest,
            ControlError::Bind(_) | ControlError::Wait(_) | ControlError::Client(_) => {
                ErrorKind::Io
            }
            ControlError::Machine(error) => machine_kind(error),
        }
    }
}

/// The kind of a machine's failure.
#[must_use]
pub fn machine_kind(error: &MachineError) -> ErrorKind {
    use crate::arch::x86_64::boot::BootError;
    use crate::pci::PciError;
    use crate::vcpu::VcpuError;
    use crate::virtio::pci::TransportError;
    match error {
        MachineError::NotFound(_) => ErrorKind::NotFound,
        MachineError::Exists(_) => ErrorKind::Exists,
        MachineError::WrongState { .. } | MachineError::InUse(_) | MachineError::Grown => {
            ErrorKind::WrongState
        }
        MachineError::Pci(PciError::NoSlot) => ErrorKind::NoSlot,
        MachineError::Io { .. }
        | MachineError::Memory(_)
        | MachineError::Vcpu(VcpuError::Pin { .. })
        | MachineError::Transport(TransportError::EventFd { .. })
        | MachineError::Boot(BootError::Initramfs(_)) => ErrorKind::Io,
        MachineError::Boot(_)
        | MachineError::Device { .. }
        | MachineError::Descriptor { .. }
        | MachineError::BadState(_)
        | MachineError::Mismatch(_)
        | MachineError::Pin(_)
        | MachineError::Size { .. }
        | MachineError::TransportRestore(_) => ErrorKind::BadRequest,
        _ => ErrorKind::Internal,
    }
}

/// The listening socket.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    connections: Vec<UnixStream>,
    /// Connections whose resize is answered when the guest has followed it.
    waiting: Vec<Waiting>,
    memory_map: Option<MemoryMap>,
}

impl ControlServer {
    /// Listens at `path`, replacing what a process before left there.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn bind(path: &Path, memory_map: Option<MemoryMap>) -> Result<Self, ControlError> {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(ControlError::Bind(e)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(ControlError::Bind)?;
        listener.set_nonblocking(true).map_err(ControlError::Bind)?;
        Ok(ControlServer {
            listener,
            connections: Vec::new(),
            waiting: Vec::new(),
            memory_map,
        })
    }
}

/// A client that waits for the guest.
#[derive(Debug)]
struct Waiting {
    stream: UnixStream,
    until: Instant,
}

/// Serves until the VM ends, with or without a control socket. Returns why it ended.
///
/// # Errors
/// When waiting itself fails.
pub fn serve(
    machine: &mut Machine,
    mut server: Option<ControlServer>,
) -> Result<End, ControlError> {
    loop {
        let mut fds = vec![
            readable(machine.lifecycle().ended().as_raw_fd()),
            readable(machine.console_timer()),
        ];
        // -1 is not looked at.
        fds.push(readable(machine.memory_changed().unwrap_or(-1)));
        if let Some(server) = &server {
            fds.push(readable(server.listener.as_raw_fd()));
            fds.extend(server.connections.iter().map(|c| readable(c.as_raw_fd())));
        }
        let until = server.as_ref().and_then(ControlServer::next_deadline);
        poll(&mut fds, until).map_err(ControlError::Wait)?;
        if let Some(end) = machine.lifecycle().get() {
            return Ok(end);
        }
        let ready = |index: usize| fds.get(index).is_some_and(|p| p.revents != 0);
        if ready(1) {
            machine.on_console_timer();
        }
        if ready(2) {
            machine.on_memory_changed();
        }
        let Some(server) = &mut server else { continue };
        answer_waiting(machine, server);
        let known = server.connections.len();
        // Backwards, so that a closed one does not shift those still to be looked at.
        for index in (0..known).rev().filter(|i| ready(4 + i)) {
            let next = server.connections.get_mut(index).map_or(Next::Close, |c| {
                serve_one(machine, c, server.memory_map.as_mut())
            });
            match next {
                Next::Keep => {}
                Next::Close => {
                    server.connections.remove(index);
                }
                Next::Wait(until) => {
                    let stream = server.connections.remove(index);
                    server.waiting.push(Waiting { stream, until });
                }
            }
        }
        if ready(3) {
            accept(server);
        }
    }
}

impl ControlServer {
    fn next_deadline(&self) -> Option<Instant> {
        self.waiting.iter().map(|w| w.until).min()
    }
}

/// Answers those whose resize the guest has followed, or who have waited long enough: they see
/// from the size how far it is.
fn answer_waiting(machine: &Machine, server: &mut ControlServer) {
    let now = Instant::now();
    for index in (0..server.waiting.len()).rev() {
        let over = server.waiting.get(index).is_some_and(|w| w.until <= now);
        if !over && !machine.is_settled() {
            continue;
        }
        let mut stream = server.waiting.remove(index).stream;
        let done = Done {
            memory_mib: Some(machine.memory_mib()),
            ..Done::default()
        };
        if send(&mut stream, &answer(Ok(done))).is_ok() {
            server.connections.push(stream);
        }
    }
}

/// What becomes of a connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Keep,
    Close,
    /// The answer comes when the guest has followed, or then.
    Wait(Instant),
}

fn accept(server: &mut ControlServer) {
    // A client that is gone again, or no descriptor left: the next one is tried anew.
    let Ok((stream, _)) = server.listener.accept() else {
        return;
    };
    let limits = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(TIMEOUT)))
        .and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
    if limits.is_ok() && server.connections.len() + server.waiting.len() < MAX_CONNECTIONS {
        server.connections.push(stream);
    }
}

/// Reads a request and answers it, or says that the answer has to wait.
fn serve_one(
    machine: &mut Machine,
    stream: &mut UnixStream,
    memory_map: Option<&mut MemoryMap>,
) -> Next {
    let (json, fds) = match receive(stream) {
        Ok(Some(message)) => message,
        Ok(None) | Err(ControlError::Client(_)) => return Next::Close,
        Err(error) => {
            // Where the next message would begin is not known any more.
            let _ = send(stream, &answer(Err(error)));
            return Next::Close;
        }
    };
    let request = api::parse_request(&json).map_err(ControlError::from);
    let patience = match &request {
        Ok(Request::Resize(resize)) => resize.wait_ms.unwrap_or(0).min(MAX_WAIT_MS),
        _ => 0,
    };
    let result = request.and_then(|request| handle(machine, request, fds, memory_map));
    if patience > 0 && result.is_ok() && !machine.is_settled() {
        return Next::Wait(Instant::now() + Duration::from_millis(patience.into()));
    }
    match send(stream, &answer(result)) {
        Ok(()) => Next::Keep,
        Err(_) => Next::Close,
    }
}

fn answer(result: Result<Done, ControlError>) -> Answer {
    match result {
        Ok(done) => Answer::Ok(done),
        Err(error) => Answer::Error(Failure {
            kind: error.kind(),
            message: error.to_string(),
        }),
    }
}

fn handle(
    machine: &mut Machine,
    request: Request,
    fds: Vec<OwnedFd>,
    memory_map: Option<&mut MemoryMap>,
) -> Result<Done, ControlError> {
    let done = Done::default();
    match request {
        Request::Boot {} => machine.boot()?,
        Request::Pause {} => machine.pause()?,
        Request::Resume {} => machine.resume()?,
        Request::Snapshot {} => {
            let [state, memory] = exactly(fds)?;
            machine.snapshot(&File::from(state), &File::from(memory))?;
        }
        Request::Attach { disk } => {
            let parts = parts(&disk, fds)?;
            let slot = machine.attach_disk(&disk.id, parts, disk.read_only, disk.queues)?;
            return Ok(Done {
                slot: Some(slot),
                ..done
            });
        }
        Request::AttachNet { net } => {
            let (tap, vhost) = tap_and_vhost(fds)?;
            let slot = machine.attach_net(NetConfig {
                id: net.id,
                tap,
                vhost,
                mac: net.mac.0,
                mtu: net.mtu,
                queue_size: net.queue_size,
            })?;
            return Ok(Done {
                slot: Some(slot),
                ..done
            });
        }
        Request::Detach { id } => machine.detach(&id)?,
        Request::Metrics {} => {
            return Ok(Done {
                metrics: Some(machine.metrics(memory_map)),
                ..done
            });
        }
        Request::Resize(resize) => {
            machine.resize(&resize)?;
            return Ok(Done {
                memory_mib: Some(machine.memory_mib()),
                ..done
            });
        }
        Request::Pin(pin) => machine.pin(&pin)?,
        Request::Stop {} => {
            machine
                .lifecycle()
                .end(Reason::Stopped, "the daemon stopped it");
        }
    }
    Ok(done)
}

fn exactly<const N: usize>(fds: Vec<OwnedFd>) -> Result<[OwnedFd; N], ControlError> {
    fds.try_into()
        .map_err(|fds: Vec<OwnedFd>| ControlError::Descriptors {
            wanted: N,
            actual: fds.len(),
        })
}

/// A disk's files.
fn parts(disk: &AttachDisk, fds: Vec<OwnedFd>) -> Result<Vec<Part>, ControlError> {
    if disk.parts.is_empty() {
        let [fd] = exactly(fds)?;
        return Ok(vec![File::from(fd).into()]);
    }
    if fds.len() != disk.parts.len() {
        return Err(ControlError::Descriptors {
            wanted: disk.parts.len(),
            actual: fds.len(),
        });
    }
    let part = |(fd, bytes): (OwnedFd, &u64)| Part {
        file: fd.into(),
        bytes: Some(*bytes),
    };
    Ok(fds.into_iter().zip(&disk.parts).map(part).collect())
}

/// A network device's tap, and after it /dev/vhost-net if it is to be used.
fn tap_and_vhost(mut fds: Vec<OwnedFd>) -> Result<(OwnedFd, Option<OwnedFd>), ControlError> {
    let vhost = if fds.len() == 2 { fds.pop() } else { None };
    let [tap] = exactly(fds)?;
    Ok((tap, vhost))
}

type Message = (Vec<u8>, Vec<OwnedFd>);

/// One message and its descriptors; none when the client has closed the connection.
fn receive(stream: &mut UnixStream) -> Result<Option<Message>, ControlError> {
    let mut prefix = [0u8; 4];
    let mut raw = [-1; MAX_FDS];
    let mut iovecs = [libc::iovec {
        iov_base: prefix.as_mut_ptr().cast(),
        iov_len: prefix.len(),
    }];
    // SAFETY: the buffer behind the iovec is valid and of that length for the call.
    let (read, count) = unsafe { stream.recv_with_fds(&mut iovecs, &mut raw) }
        .map_err(|e| ControlError::Client(e.into()))?;
    let fds = raw
        .iter()
        .take(count)
        // SAFETY: the kernel has just installed these for this process, and nobody else has
        // them. Surplus ones are closed with the vector.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) })
        .collect();
    if read == 0 {
        return Ok(None);
    }
    let rest = prefix.get_mut(read..).unwrap_or_default();
    stream.read_exact(rest).map_err(ControlError::Client)?;
    let len = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if len > MAX_MESSAGE {
        return Err(ControlError::TooLong(len));
    }
    let mut json = vec![0u8; len];
    stream.read_exact(&mut json).map_err(ControlError::Client)?;
    Ok(Some((json, fds)))
}

fn send(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut json = serde_json::to_vec(answer)?;
    if json.len() > MAX_MESSAGE {
        let failure = Failure {
            kind: ErrorKind::Internal,
            message: format!("the answer of {} bytes is too long", json.len()),
        };
        json = serde_json::to_vec(&Answer::Error(failure))?;
    }
    let len = u32::try_from(json.len()).unwrap_or(0);
    let mut message = len.to_le_bytes().to_vec();
    message.extend_from_slice(&json);
    stream.write_all(&message)
}
