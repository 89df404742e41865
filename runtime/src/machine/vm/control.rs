//! The client of a VMM's control socket: u32 little-endian length, then JSON, one answer per
//! request in order (docs/vmm-api.md). Each request is its own connection, so that a request that
//! was given up half-way cannot shift the answers of the next.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::Duration,
};

use bulkhead_contract::vmm::{
    Answer, AttachDisk, AttachNet, Done, Failure, MAX_PARTS, Pin, Request, Resize,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::UnixStream,
};

use super::{VmmError, jail};

/// The longest message either side sends.
const MAX_MESSAGE: usize = 64 * 1024;
/// A request is a few system calls in the VMM; a host under load gets a multiple of that.
const DEADLINE: Duration = Duration::from_secs(20);

/// Talks to one VMM.
#[derive(Debug, Clone)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// For the VMM whose control socket is at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Plugs a disk whose file is the first of `files`, or whose parts they are; gives the slot it got.
    pub async fn attach(
        &self,
        disk: AttachDisk,
        files: &[BorrowedFd<'_>],
    ) -> Result<String, VmmError> {
        let done = self
            .ask("attach a disk", &Request::Attach { disk }, files)
            .await?;
        done.slot.ok_or(VmmError::Protocol {
            during: "attaching a disk",
            what: "the answer names no slot".to_owned(),
        })
    }

    /// Plugs a network device: `files` are its tap and, if that is to be used, /dev/vhost-net.
    pub async fn attach_net(
        &self,
        net: AttachNet,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), VmmError> {
        let request = Request::AttachNet { net };
        self.ask("attach a network device", &request, files)
            .await
            .map(|_| ())
    }

    /// Unplugs a disk the guest has let go of.
    pub async fn detach(&self, id: &str) -> Result<(), VmmError> {
        let request = Request::Detach { id: id.to_owned() };
        self.ask("detach a disk", &request, &[]).await.map(|_| ())
    }

    /// The VMM's own counters.
    pub async fn metrics(&self) -> Result<serde_json::Value, VmmError> {
        let done = self
            .ask("read the metrics", &Request::Metrics {}, &[])
            .await?;
        Ok(done.metrics.unwrap_or_default())
    }

    /// Changes the VM's size, and gives how much memory the guest has now, MiB.
    pub async fn resize(&self, resize: Resize) -> Result<u64, VmmError> {
        let wait = Duration::from_millis(resize.wait_ms.unwrap_or(0).into());
        let request = Request::Resize(resize);
        let done = self
            .ask_for(
                DEADLINE.saturating_add(wait),
                "resize the VM",
                &request,
                &[],
            )
            .await?;
        done.memory_mib.ok_or(VmmError::Protocol {
            during: "resizing the VM",
            what: "the answer names no size".to_owned(),
        })
    }

    /// Says which of the host's processors the vCPUs run on.
    pub async fn pin(&self, pin: Pin) -> Result<(), VmmError> {
        let request = Request::Pin(pin);
        self.ask("pin its vCPUs", &request, &[]).await.map(|_| ())
    }

    /// Ends the VM at once and with it the process.
    pub async fn stop(&self) -> Result<(), VmmError> {
        self.ask("stop the VM", &Request::Stop {}, &[])
            .await
            .map(|_| ())
    }

    async fn ask(
        &self,
        action: &'static str,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<Done, VmmError> {
        self.ask_for(DEADLINE, action, request, files).await
    }

    async fn ask_for(
        &self,
        deadline: Duration,
        action: &'static str,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<Done, VmmError> {
        let answer = tokio::time::timeout(deadline, self.exchange(action, request, files))
            .await
            .map_err(|_| VmmError::Deadline {
                during: action,
                seconds: deadline.as_secs(),
            })??;
        match answer {
            Answer::Ok(done) => Ok(done),
            Answer::Error(Failure { kind, message }) => Err(VmmError::Request {
                action,
                kind,
                message,
            }),
        }
    }

    async fn exchange(
        &self,
        action: &'static str,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<Answer, VmmError> {
        let socket = |source| VmmError::Socket {
            action,
            path: self.path.clone(),
            source,
        };
        let protocol = |what: String| VmmError::Protocol {
            during: action,
            what,
        };

        let body = serde_json::to_vec(request).map_err(|e| protocol(e.to_string()))?;
        let length = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= MAX_MESSAGE)
            .ok_or_else(|| protocol(format!("a request of {} bytes is too long", body.len())))?;
        let mut message = length.to_le_bytes().to_vec();
        message.extend_from_slice(&body);

        let mut stream = jail::connect(&self.path).await.map_err(socket)?;
        let sent = send_with_files(&stream, &message, files)
            .await
            .map_err(socket)?;
        stream
            .write_all(message.get(sent..).unwrap_or_default())
            .await
            .map_err(socket)?;

        let length = stream.read_u32_le().await.map_err(socket)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(protocol(format!("an answer of {length} bytes is too long")));
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.map_err(socket)?;
        serde_json::from_slice(&answer)
            .map_err(|e| protocol(format!("an answer that is none: {e}")))
    }
}

/// Sends the beginning of a message together with descriptors; gives how many bytes went.
async fn send_with_files(
    stream: &UnixStream,
    message: &[u8],
    files: &[BorrowedFd<'_>],
) -> std::io::Result<usize> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PARTS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let parts = [IoSlice::new(message)];
        Ok(rustix::net::sendmsg(
            stream.as_fd(),
            &parts,
            &mut control,
            SendFlags::NOSIGNAL,
        )?)
    };
    stream.async_io(Interest::WRITABLE, send).await
}
