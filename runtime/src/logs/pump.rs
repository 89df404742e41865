//! The task that carries a process's output from the agent into its log. One light task per
//! container; the file is only touched on the blocking pool, in batches.
//!
//! A line that cannot be written (a full disk) is dropped with a warning and acknowledged: a
//! container must not stand still because the node's log disk is full.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::{
    agent::{Exit, OutputRequest, ProcessRef, session_request::What},
    session,
};
use futures::FutureExt as _;
use tokio::{
    io::AsyncWriteExt as _,
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tonic::Code;

use super::{
    Checkpoint, Checkpoints, Encoder, LogError, LogFile, LogPath, Offsets,
    tee::{self, OutputCopy, Reader, Tee},
    time,
};
use crate::agent::{Agent, AgentError, Event, Frames};

/// What a session with the agent is for.
const CARRY: &str = "carry the output";
/// Lines gathered before they are written, if the agent has that much at hand.
const BATCH: usize = 256 * 1024;
/// How much may be written between two checkpoints: it bounds what a restart reads again.
const CHECKPOINT_EVERY: u64 = 1024 * 1024;
/// Between two tries to reach the agent.
const RETRY: Duration = Duration::from_millis(500);
/// A guest's clock further ahead than this is not believed.
const CLOCK_AHEAD: i64 = 60_000_000_000;
/// How often a log that cannot be written is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// What a pump carries, and where to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The container.
    pub container: String,
    /// Its log; `None` drains the output (a process must not block because nothing reads).
    pub log: Option<LogPath>,
    /// Where its checkpoints are kept.
    pub checkpoints: Checkpoints,
}

/// A handle to a running pump. Dropping it does not end the task.
#[derive(Debug, Clone)]
pub struct Pump {
    container: String,
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<State>,
}

#[derive(Debug)]
enum Command {
    Reopen(oneshot::Sender<Result<(), LogError>>),
    /// A copy of what comes from now on.
    Copy(Reader),
    /// The guest is gone or going: write what is there and end.
    End,
}

#[derive(Debug, Clone)]
enum State {
    Running,
    Ended(Option<Exit>),
}

impl Pump {
    /// Opens the log and starts carrying. `resume`: a daemon before this one had begun, so the
    /// log's end is read first.
    pub async fn start(agent: Agent, target: Target, resume: bool) -> Result<Self, LogError> {
        let opening = target.clone();
        let (file, checkpoint) = blocking(move || open(&opening, resume)).await?;
        let (commands, inbox) = mpsc::channel(8);
        let (state, seen) = watch::channel(State::Running);
        let handle = Self {
            container: target.container.clone(),
            commands,
            state: seen,
        };
        let encoder = Encoder::new(checkpoint.offsets);
        let task = Task {
            agent,
            target: Arc::new(target),
            file,
            encoder,
            safe: checkpoint.offsets,
            since_checkpoint: 0,
            complained: None,
            lost: 0,
            lost_logged: None,
            inbox,
            tee: Tee::default(),
        };
        tokio::spawn(async move {
            let (exit, mut tee) = task.run().await;
            // No receiver left is fine: the container was removed meanwhile.
            let _ = state.send(State::Ended(exit));
            // Those who are attached get the rest; nobody else waits for them.
            tee.deliver().await;
        });
        Ok(handle)
    }

    /// Waits until all output is in the log; returns the exit, if the agent reported one (a guest
    /// that died reports none). `None` if that takes longer than `limit`.
    pub async fn ended(&self, limit: Duration) -> Option<Option<Exit>> {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| matches!(state, State::Ended(_)));
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok(state)) => match &*state {
                State::Ended(exit) => Some(*exit),
                State::Running => None,
            },
            // The task panicked: there is nothing to wait for.
            Ok(Err(_)) => Some(None),
            Err(_) => None,
        }
    }

    /// Reopens the log's path; on return the file exists.
    pub async fn reopen(&self) -> Result<(), LogError> {
        let closed = || LogError::Closed {
            container: self.container.clone(),
        };
        let (answer, wait) = oneshot::channel();
        self.commands
            .send(Command::Reopen(answer))
            .await
            .map_err(|_| closed())?;
        wait.await.map_err(|_| closed())?
    }

    /// A copy of the output from now on, for one who attaches.
    pub async fn copy(&self) -> Result<OutputCopy, LogError> {
        let (reader, copy) = tee::copy();
        self.commands
            .send(Command::Copy(reader))
            .await
            .map_err(|_| LogError::Closed {
                container: self.container.clone(),
            })?;
        Ok(copy)
    }

    /// Tells the pump that nothing more will come.
    pub fn end(&self) {
        // A full inbox holds an earlier word already; a closed one means it has ended.
        let _ = self.commands.try_send(Command::End);
    }
}

fn open(target: &Target, resume: bool) -> Result<(Option<LogFile>, Checkpoint), LogError> {
    let known = if resume {
        target.checkpoints.load(&target.container)?
    } else {
        None
    };
    let (file, checkpoint) = match (&target.log, known) {
        (Some(at), Some(known)) => {
            let (file, offsets) = LogFile::recover(at.clone(), &known)?;
            let now = file.checkpoint(offsets, known.ended);
            (Some(file), now)
        }
        (Some(at), None) => {
            let file = LogFile::open(at.clone())?;
            let now = file.checkpoint(Offsets::default(), false);
            (Some(file), now)
        }
        (None, known) => (None, known.unwrap_or_default()),
    };
    target.checkpoints.store(&target.container, &checkpoint)?;
    Ok((file, checkpoint))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| LogError::Ending)?
}

struct Task {
    agent: Agent,
    target: Arc<Target>,
    file: Option<LogFile>,
    encoder: Encoder,
    /// What stands in the log: the place to resume from.
    safe: Offsets,
    since_checkpoint: u64,
    complained: Option<Instant>,
    /// Bytes that the agent no longer had, and when that was last logged.
    lost: u64,
    lost_logged: Option<Instant>,
    inbox: mpsc::Receiver<Command>,
    tee: Tee,
}

/// Tells the agent what is safe. Only the newest word counts: one that is slow to take them gets
/// fewer.
async fn acknowledge_newest(mut write: OwnedWriteHalf, mut newest: watch::Receiver<Offsets>) {
    while newest.changed().await.is_ok() {
        let safe = *newest.borrow_and_update();
        let word = session::acknowledgement(safe.stdout, safe.stderr);
        // A connection that is broken is seen where it is read.
        if write.write_all(&word).await.is_err() {
            return;
        }
    }
}

/// Why a stretch of carrying ended.
enum Stop {
    Exit(Exit),
    /// The agent no longer knows the process, or refuses for good.
    Gone,
    /// The daemon ends it.
    Ended,
    /// The connection was lost.
    Broken,
}

impl Task {
    async fn run(mut self) -> (Option<Exit>, Tee) {
        let exit = loop {
            match self.carry().await {
                Stop::Exit(exit) => break Some(exit),
                Stop::Gone | Stop::Ended => break None,
                Stop::Broken => {
                    // What was taken but not written comes again.
                    self.encoder = Encoder::new(self.safe);
                    if self.ended_within(RETRY).await {
                        break None;
                    }
                }
            }
        };
        self.encoder.finish(time::now());
        self.write().await;
        self.save(true).await;
        (exit, self.tee)
    }

    /// Serves commands for a while; true if it is to end.
    async fn ended_within(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            match tokio::time::timeout_at(until, self.inbox.recv()).await {
                Ok(Some(command)) => {
                    if self.handle(command).await {
                        return true;
                    }
                }
                // All handles dropped: only the guest's end stops the pump then.
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// Handles a command; true if it is to end.
    async fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::Reopen(answer) => self.reopen(answer).await,
            Command::Copy(reader) => self.tee.add(reader),
            Command::End => return true,
        }
        false
    }

    /// Opens a session from where the log is. A guest may be slow to answer: commands do not wait.
    async fn connect(&mut self) -> Result<UnixStream, Stop> {
        let process = ProcessRef {
            container_id: self.target.container.clone(),
            exec_id: String::new(),
        };
        let open = OutputRequest {
            process: Some(process),
            stdout_offset: self.safe.stdout,
            stderr_offset: self.safe.stderr,
        };
        let agent = self.agent.clone();
        let mut opening = std::pin::pin!(agent.session(CARRY, What::Output(open)));
        loop {
            let opened = tokio::select! {
                opened = &mut opening => opened,
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        if self.handle(command).await {
                            return Err(Stop::Ended);
                        }
                        continue;
                    }
                    None => opening.as_mut().await,
                },
            };
            return opened.map_err(|error| self.refused(&error));
        }
    }

    async fn carry(&mut self) -> Stop {
        let (read, write) = match self.connect().await {
            Ok(connection) => connection.into_split(),
            Err(stop) => return stop,
        };
        let (acknowledge, newest) = watch::channel(self.safe);
        let mut acknowledging = JoinSet::new();
        acknowledging.spawn(acknowledge_newest(write, newest));
        let mut frames = Frames::new(read, CARRY);
        loop {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => {
                        if self.handle(command).await {
                            // Whatever is at hand still goes in.
                            self.drain_ready(&mut frames).await;
                            return Stop::Ended;
                        }
                    }
                    // No handle is left; the output still has to go somewhere.
                    None => return self.without_handles(&mut frames, &acknowledge).await,
                },
                event = frames.next() => {
                    if let Some(stop) = self.take(event, &mut frames, &acknowledge).await {
                        return stop;
                    }
                }
            }
        }
    }

    async fn without_handles(
        &mut self,
        frames: &mut Frames,
        acknowledge: &watch::Sender<Offsets>,
    ) -> Stop {
        loop {
            let event = frames.next().await;
            if let Some(stop) = self.take(event, frames, acknowledge).await {
                return stop;
            }
        }
    }

    /// Takes an event and whatever else is at hand, writes, acknowledges.
    async fn take(
        &mut self,
        first: Result<Event, AgentError>,
        frames: &mut Frames,
        acknowledge: &watch::Sender<Offsets>,
    ) -> Option<Stop> {
        let mut next = Some(first);
        let mut stop = None;
        while let Some(event) = next.take() {
            match event {
                Ok(event) => stop = self.feed(event),
                Err(error) => {
                    let error = crate::error::chain(&error);
                    tracing::debug!(
                        container = self.target.container,
                        error,
                        "output interrupted"
                    );
                    stop = Some(Stop::Broken);
                }
            }
            if stop.is_none() && self.encoder.waiting() < BATCH {
                next = frames.next().now_or_never();
            }
        }
        self.write().await;
        if self.since_checkpoint >= CHECKPOINT_EVERY {
            self.save(false).await;
        }
        if stop.is_none() {
            // Before the acknowledgement: a slow reader holds the process up, and what is copied
            // for it stays bounded.
            self.tee.deliver().await;
        }
        acknowledge.send_replace(self.safe);
        stop
    }

    async fn drain_ready(&mut self, frames: &mut Frames) {
        while let Some(Ok(event)) = frames.next().now_or_never() {
            if self.feed(event).is_some() {
                break;
            }
            if self.encoder.waiting() >= BATCH {
                self.write().await;
            }
        }
    }

    fn feed(&mut self, event: Event) -> Option<Stop> {
        let (place, data) = match event {
            Event::Exit(exit) => return Some(Stop::Exit(exit)),
            Event::Data(place, data) => (place, data),
        };
        self.tee.feed(place.stream, place.offset, &data);
        // What comes twice is cut off; a gap means bytes are lost for good, and the stream resumes
        // behind it.
        let taken = self.encoder.taken(place.stream);
        let skip = usize::try_from(taken.saturating_sub(place.offset)).unwrap_or(usize::MAX);
        if place.offset > taken {
            self.note_lost(place.offset - taken);
            self.encoder.skip(place.stream, place.offset);
        }
        let fresh = data.get(skip.min(data.len())..).unwrap_or_default();
        let (now, reported) = (time::now(), place.time_unix_ns);
        let plausible = reported > 0 && reported <= now.saturating_add(CLOCK_AHEAD);
        self.encoder
            .feed(place.stream, fresh, if plausible { reported } else { now });
        None
    }

    fn refused(&self, error: &AgentError) -> Stop {
        match error.agent_code() {
            Some(
                Code::NotFound
                | Code::InvalidArgument
                | Code::OutOfRange
                | Code::FailedPrecondition,
            ) => {
                tracing::warn!(
                    container = self.target.container,
                    error = crate::error::chain(error),
                    "the agent refuses the rest of the container's output"
                );
                Stop::Gone
            }
            _ => {
                tracing::debug!(
                    container = self.target.container,
                    error = crate::error::chain(error),
                    "the output cannot be carried just now"
                );
                Stop::Broken
            }
        }
    }

    /// A guest can leave gaps as often as it likes; one in a while is logged.
    fn note_lost(&mut self, lost: u64) {
        self.lost = self.lost.saturating_add(lost);
        if self
            .lost_logged
            .is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY)
        {
            tracing::warn!(
                container = self.target.container,
                lost = self.lost,
                "the agent no longer has a part of the container's output"
            );
            self.lost_logged = Some(Instant::now());
        }
    }

    /// Writes the lines made so far; afterwards they count as safe, written or given up.
    async fn write(&mut self) {
        let (lines, offsets) = self.encoder.take();
        self.safe = offsets;
        if lines.is_empty() {
            return;
        }
        let Some(mut file) = self.file.take() else {
            return;
        };
        self.since_checkpoint += lines.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            let result = file.append(&lines);
            (file, result)
        });
        let Ok((file, result)) = written.await else {
            return;
        };
        self.file = Some(file);
        if let Err(error) = result
            && self
                .complained
                .is_none_or(|last| last.elapsed() > COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::warn!(
                container = self.target.container,
                error = crate::error::chain(&error),
                "output is lost: the log cannot be written"
            );
        }
    }

    async fn reopen(&mut self, answer: oneshot::Sender<Result<(), LogError>>) {
        let Some(mut file) = self.file.take() else {
            let _ = answer.send(Ok(()));
            return;
        };
        let target = Arc::clone(&self.target);
        let offsets = self.safe;
        // The checkpoint is stored before the new file gets a line: a restart then either finds
        // the old file (by its inode) or counts in the new one.
        let work = tokio::task::spawn_blocking(move || {
            let result = file.reopen().and_then(|another| {
                if another {
                    let now = file.checkpoint(offsets, false);
                    target.checkpoints.store(&target.container, &now)?;
                }
                Ok(())
            });
            (file, result)
        });
        let result = match work.await {
            Ok((file, result)) => {
                self.file = Some(file);
                result
            }
            Err(_) => Err(LogError::Ending),
        };
        let _ = answer.send(result);
    }

    async fn save(&mut self, ended: bool) {
        let now = match &self.file {
            Some(file) => file.checkpoint(self.safe, ended),
            None => Checkpoint {
                offsets: self.safe,
                ended,
                ..Checkpoint::default()
            },
        };
        let target = Arc::clone(&self.target);
        let stored = blocking(move || target.checkpoints.store(&target.container, &now)).await;
        match stored {
            Ok(()) => self.since_checkpoint = 0,
            Err(error) => tracing::warn!(
                container = self.target.container,
                error = crate::error::chain(&error),
                "the log's checkpoint cannot be written"
            ),
        }
    }
}
