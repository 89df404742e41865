//! ExecSync: a command in a running container, its output gathered, its exit code.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{ExecRequest, SignalProcessRequest, Stream};

use super::{ContainerError, error::in_words, find};
use crate::{
    agent::{Agent, AgentError, Command, Event, Frames},
    app::App,
    id::new_id,
    records::{ContainerRecord, ContainerState},
};

/// For a killed command to be gone.
const DEADLINE: Duration = Duration::from_secs(10);
const KILL: u32 = 9;
/// Output kept of each stream (CRI: at most 16 MiB). The rest is read and dropped, so that the
/// command does not block on it.
const OUTPUT_LIMIT: usize = 16 * 1024 * 1024;

/// What a command left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// The beginning of its standard output.
    pub stdout: Vec<u8>,
    /// The beginning of its standard error.
    pub stderr: Vec<u8>,
    /// Its exit code, 128 + signal for a death by signal.
    pub exit_code: i32,
}

/// Runs a command to its end, or kills it after `timeout` seconds (0: it may take for ever, or
/// until the caller goes away).
pub async fn exec_sync(
    app: &App,
    id: &str,
    command: Vec<String>,
    timeout: i64,
) -> Result<Output, ContainerError> {
    if command.first().is_none_or(String::is_empty) {
        return Err(ContainerError::Invalid {
            field: "cmd",
            what: "is empty; it needs at least the program to run".to_owned(),
        });
    }
    let timeout = u64::try_from(timeout).map_err(|_| ContainerError::Invalid {
        field: "timeout",
        what: format!("is {timeout}; it must be 0 (none) or a number of seconds"),
    })?;
    let record = running(app, id, "run a command in")?;
    let pod = app.pods.ready(&record.meta.sandbox_id)?;
    let exec_id = new_id().map_err(|source| ContainerError::Os {
        action: "make an id".to_owned(),
        source,
    })?;
    let request = ExecRequest {
        container_id: record.meta.id.clone(),
        exec_id,
        args: command,
        ..ExecRequest::default()
    };
    let (agent, id) = (&pod.agent, &record.meta.id);
    let start = Command::start(agent, request);
    if timeout == 0 {
        return Ok(gather(&mut start.await?.output).await?);
    }
    let mut start = std::pin::pin!(start);
    let mut command = None;
    let run = async {
        let command = command.insert(start.as_mut().await?);
        gather(&mut command.output).await
    };
    let ran = tokio::time::timeout(Duration::from_secs(timeout), run).await;
    if let Ok(done) = ran {
        return Ok(done?);
    }
    let killed = async {
        // One that is still being started would run on for a while.
        let command = match command {
            Some(command) => command,
            None => start.await?,
        };
        kill(agent, command).await
    };
    match tokio::time::timeout(DEADLINE, killed).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a command is killed with its session"),
        Err(_) => tracing::warn!(container = %id, "a killed command does not go"),
    }
    Err(ContainerError::ExecTimeout {
        id: id.clone(),
        seconds: timeout,
    })
}

/// The record of a container that runs; `action` is what is to be done with it.
pub fn running(
    app: &App,
    id: &str,
    action: &'static str,
) -> Result<Arc<ContainerRecord>, ContainerError> {
    let record = find::existing(app, id)?;
    if record.status.state != ContainerState::Running {
        return Err(ContainerError::State {
            action,
            id: record.meta.id.clone(),
            state: in_words(record.status.state),
            needed: in_words(ContainerState::Running),
        });
    }
    Ok(record)
}

async fn gather(frames: &mut Frames) -> Result<Output, AgentError> {
    let mut output = Output::default();
    loop {
        match frames.next().await? {
            Event::Exit(exit) => {
                output.exit_code = exit.code;
                return Ok(output);
            }
            Event::Data(place, data) => {
                let kept = match place.stream {
                    Stream::Stdout => &mut output.stdout,
                    Stream::Stderr => &mut output.stderr,
                };
                let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(data.len());
                kept.extend_from_slice(data.get(..room).unwrap_or_default());
            }
        }
    }
}

/// Kills a command with all that it started and sees them gone, so that the caller's next look does
/// not find them.
async fn kill(agent: &Agent, mut command: Command) -> Result<(), AgentError> {
    let request = SignalProcessRequest {
        process: Some(command.process.clone()),
        signal: KILL,
        all: false,
    };
    let killed = agent.call("kill the command", DEADLINE, |mut agent| async move {
        agent.signal_process(request).await
    });
    killed.await?;
    gather(&mut command.output).await.map(drop)
}
