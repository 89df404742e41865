//! From one FUSE message in guest memory to its answer there.
//!
//! The server is called by several threads at once and holds no lock over a system call. What the
//! requests do is in `names`, `files`, `attributes` and `xattrs`; this file has the dispatch, and what all
//! of them use.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::abi::{self, IN_HEADER, OUT_HEADER, op};
use super::handles::{Handle, Handles};
use super::metrics::FsMetrics;
use super::nodes::{Node, Nodes, Origin};
use super::reply::{self, Writer};
use super::request::{Header, MAX_MESSAGE, Request, WRITE_HEAD, wants_answer};
use crate::sync::lock;
use crate::virtio::buffers::Buffers;
use crate::virtio::iovec::IoVecs;

/// The most bytes of one READ or WRITE: 256 pages, the most the guest's kernel puts in a request.
pub const MAX_WRITE: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// In `Server::agreed`: INIT has been answered. No flag of the protocol's.
const MOUNTED: u64 = 1 << 63;

/// How much the guest may make this process hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files looked up, one descriptor each.
    pub nodes: usize,
    /// Files open, one more descriptor each.
    pub handles: usize,
}

/// Where a thread works: nothing of it outlives a request but the allocations.
#[derive(Debug, Default)]
pub struct Scratch<'m> {
    /// Where the message is, and where the answer goes.
    pub chain: Buffers<'m>,
    /// Where the answer's header goes.
    front: IoVecs<'m>,
    message: Vec<u8>,
    /// The answer after its header.
    pub(super) out: Vec<u8>,
    /// What system calls fill.
    pub(super) buffer: Vec<u8>,
}

impl Scratch<'_> {
    /// An empty one with the allocations of this.
    #[must_use]
    pub fn recycle<'n>(self) -> Scratch<'n> {
        Scratch {
            chain: self.chain.recycle(),
            front: self.front.recycle(),
            message: self.message,
            out: self.out,
            buffer: self.buffer,
        }
    }
}

/// The file server of one share.
#[derive(Debug)]
pub struct Server {
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
    /// /proc/self/fd, to open what an `O_PATH` descriptor names.
    pub(super) descriptors: OwnedFd,
    /// The flags that INIT agreed on, and `MOUNTED`; 0 before.
    agreed: AtomicU64,
    /// Counters.
    pub metrics: FsMetrics,
}

/// What an answer consists of.
pub(super) enum Payload {
    /// What is in `Scratch::out`.
    Out,
    /// So many bytes, in guest memory already.
    Placed(usize),
}

pub(super) type Outcome = Result<Payload, Errno>;

/// What is asked of every file.
const STAT: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);

/// All there is to know of the file behind a descriptor.
pub(super) fn stat(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, STAT)
}

/// The name of a descriptor in /proc/self/fd.
pub(super) fn name_of(fd: impl AsFd) -> Result<CString, Errno> {
    CString::new(fd.as_fd().as_raw_fd().to_string()).map_err(|_| Errno::INVAL)
}

impl Server {
    /// Serves the directory `share`; `descriptors` is /proc/self/fd.
    ///
    /// # Errors
    /// When `share` cannot be looked at.
    pub fn new(share: OwnedFd, descriptors: OwnedFd, limits: Limits) -> Result<Self, Errno> {
        let root = stat(&share)?;
        Ok(Server {
            nodes: Mutex::new(Nodes::new(share, &root, limits.nodes)),
            handles: Mutex::new(Handles::new(limits.handles)),
            descriptors,
            agreed: AtomicU64::new(0),
            metrics: FsMetrics::default(),
        })
    }

    /// Whether the guest holds anything but the root.
    #[must_use]
    pub fn holds(&self) -> (usize, usize) {
        (self.nodes().count() - 1, self.handles().count())
    }

    /// Whether the guest has mounted it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.agreed.load(Ordering::Relaxed) & MOUNTED != 0
    }

    /// The flags of INIT that both sides know, once it is mounted.
    #[must_use]
    pub fn agreed(&self) -> u64 {
        self.agreed.load(Ordering::Relaxed) & !MOUNTED
    }

    /// A restored guest has mounted it already, and agreed on this.
    pub fn set_mounted(&self, agreed: u64) {
        self.set_agreed(agreed | MOUNTED);
    }

    fn set_agreed(&self, agreed: u64) {
        self.agreed.store(agreed, Ordering::Relaxed);
    }

    /// Closes all the guest holds.
    pub fn clear(&self) {
        self.set_agreed(0);
        // Closing waits for disks, at times: not under the locks.
        let handles = self.handles().clear();
        let nodes = self.nodes().clear();
        drop((handles, nodes));
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        lock(&self.nodes)
    }

    pub(super) fn handles(&self) -> MutexGuard<'_, Handles> {
        lock(&self.handles)
    }

    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        self.nodes().get(id)
    }

    pub(super) fn handle(&self, id: u64) -> Result<Arc<Handle>, Errno> {
        self.handles().get(id)
    }

    /// Opens the file behind a node to keep it open for the guest.
    ///
    /// Never for appending, though the guest's file is: of one opened that way pwrite(2) ignores the
    /// offset, and what a mapping has written must land where it was. Each write says whether it
    /// appends. A file that has the attribute of append-only opens in no other way, and no mapping
    /// writes in one.
    pub(super) fn open_for_guest(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.reopen(node, flags - OFlags::APPEND) {
            Err(Errno::PERM) if flags.contains(OFlags::APPEND) => self.reopen(node, flags),
            opened => opened,
        }
    }

    /// Opens the file behind a node anew. Only regular files and directories are ever opened:
    /// what a device or a FIFO does when it is opened is the guest's own business.
    pub(super) fn reopen(&self, node: &Node, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = match node.kind {
            FileType::RegularFile => flags,
            FileType::Directory => flags | OFlags::DIRECTORY,
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        };
        if node.origin == Origin::Process && node.kind == FileType::RegularFile {
            allowed_on_procfs(node, flags)?;
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::openat(
            &self.descriptors,
            &*name_of(&node.fd)?,
            flags,
            Mode::empty(),
        )
    }

    /// Serves the message in `scratch.chain` and answers there; the number of bytes written.
    pub fn serve(&self, scratch: &mut Scratch<'_>) -> usize {
        let Some(header) = read_message(scratch) else {
            self.metrics.malformed.add(1);
            return 0;
        };
        self.metrics.requests.add(1);
        scratch.out.clear();
        let mut front = std::mem::take(&mut scratch.front);
        scratch.chain.writable.take_front(OUT_HEADER, &mut front);
        let message = std::mem::take(&mut scratch.message);
        let outcome = self.handle_request(&header, &message, scratch);
        let written = if wants_answer(header.opcode) && front.len() == OUT_HEADER {
            self.answer(&header, outcome, &front, scratch)
        } else {
            0
        };
        scratch.front = front;
        scratch.message = message;
        written
    }

    fn answer(
        &self,
        header: &Header,
        outcome: Outcome,
        front: &IoVecs<'_>,
        scratch: &Scratch<'_>,
    ) -> usize {
        let payload = match outcome {
            Ok(Payload::Placed(n)) => Ok(n),
            Ok(Payload::Out) if scratch.out.len() <= scratch.chain.writable.len() => {
                Ok(scratch.chain.writable.copy_from(&scratch.out))
            }
            // The guest gave too little room for the answer it asked for.
            Ok(Payload::Out) => Err(Errno::INVAL.raw_os_error()),
            Err(errno) => Err(errno.raw_os_error()),
        };
        if payload.is_err() {
            self.metrics.errors.add(1);
        }
        front.copy_from(&reply::header(header.unique, payload));
        OUT_HEADER + payload.unwrap_or(0)
    }

    fn handle_request(
        &self,
        header: &Header,
        message: &[u8],
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        let body = message.get(IN_HEADER..).ok_or(Errno::TOOBIG)?;
        let request = Request::parse(header, body, self.agreed())?;
        if !self.is_ready() && !matches!(request, Request::Init { .. }) {
            return Err(Errno::NOTCONN);
        }
        let node = header.node;
        match request {
            Request::Init {
                major,
                minor,
                max_readahead,
                flags,
            } => self.init(major, minor, max_readahead, flags, scratch),
            Request::Destroy => {
                self.clear();
                Ok(Payload::Out)
            }
            Request::Interrupt => Ok(Payload::Out),
            Request::Forget { count } => {
                let gone = self.nodes().forget(node, count);
                drop(gone);
                Ok(Payload::Out)
            }
            Request::BatchForget(forgets) => {
                for (node, count) in forgets {
                    let gone = self.nodes().forget(node, count);
                    drop(gone);
                }
                Ok(Payload::Out)
            }
            Request::Read {
                handle,
                offset,
                size,
            } => self.read(handle, offset, size, scratch),
            Request::Write {
                handle,
                offset,
                size,
                kill,
                append,
            } => self.write(handle, (offset, append), size, kill, scratch),
            Request::Lookup { .. }
            | Request::Symlink { .. }
            | Request::Mknod { .. }
            | Request::Mkdir { .. }
            | Request::Unlink { .. }
            | Request::Rmdir { .. }
            | Request::Rename { .. }
            | Request::Link { .. }
            | Request::Create { .. }
            | Request::Tmpfile { .. }
            | Request::ReadLink => self.on_name(header, &request, scratch),
            Request::GetAttr { .. }
            | Request::Statx { .. }
            | Request::SetAttr(_)
            | Request::StatFs => self.on_attributes(node, &request, scratch),
            Request::SetXattr { .. }
            | Request::GetXattr { .. }
            | Request::ListXattr { .. }
            | Request::RemoveXattr { .. } => self.on_xattrs(node, &request, scratch),
            Request::Open { .. }
            | Request::OpenDir
            | Request::Release { .. }
            | Request::Flush { .. }
            | Request::Fsync { .. }
            | Request::ReadDir { .. }
            | Request::Fallocate { .. }
            | Request::Lseek { .. }
            | Request::CopyRange { .. }
            | Request::SyncFs => self.on_file(node, &request, scratch),
        }
    }

    fn init(
        &self,
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u64,
        scratch: &mut Scratch<'_>,
    ) -> Outcome {
        use abi::init;
        const WANTED: u64 = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::DONT_MASK
            | init::AUTO_INVAL_DATA
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::POSIX_ACL
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2
            | init::SETXATTR_EXT
            | init::INIT_EXT
            | init::DIRECT_IO_ALLOW_MMAP
            | init::ALLOW_IDMAP;
        if major < abi::VERSION || (major == abi::VERSION && minor < abi::OLDEST_MINOR) {
            return Err(Errno::PROTO);
        }
        self.clear();
        let agreed = flags & WANTED;
        self.set_mounted(agreed);
        reply::init(
            &mut Writer(&mut scratch.out),
            max_readahead,
            agreed,
            MAX_WRITE,
            MAX_PAGES,
        );
        Ok(Payload::Out)
    }
}

/// Copies the message; of a WRITE, what comes before its data.
fn read_message(scratch: &mut Scratch<'_>) -> Option<Header> {
    let (message, readable) = (&mut scratch.message, &mut scratch.chain.readable);
    let total = readable.len();
    message.clear();
    message.resize(total.min(WRITE_HEAD), 0);
    readable.copy_to(message);
    let header = Header::parse(message, total).ok()?;
    let len = usize::try_from(header.len).ok()?;
    if header.opcode == op::WRITE {
        readable.advance(WRITE_HEAD);
    } else if len <= MAX_MESSAGE {
        message.resize(len, 0);
        // The guest may have changed it meanwhile. What counts is the header read before and the
        // body read now, of which each is checked by itself.
        readable.copy_to(message);
    } else {
        message.clear();
    }
    Some(header)
}

/// A pod that was given the host's /proc sees this process in it. What it could do with its own
/// memory through /proc/PID/mem ends here: files there are read if everyone may, and not written.
fn allowed_on_procfs(node: &Node, flags: OFlags) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(u32::from(stat(&node.fd)?.stx_mode));
    let reads = flags & OFlags::ACCMODE == OFlags::RDONLY && !flags.contains(OFlags::TRUNC);
    if reads && mode.contains(Mode::ROTH) {
        Ok(())
    } else {
        Err(Errno::ACCESS)
    }
}
