//! ExecSync: a command in a running container, its output gathered, its exit code.

use std::{sync::Arc, time::Duration};

use bulkhead_proto::agent::{
    DeleteExecRequest, ExecRequest, OutputRequest, ProcessRef, Stream, output_chunk::Event,
};
use futures::{StreamExt as _, stream};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

use super::{ContainerError, error::in_words, find};
use crate::{
    agent::{Agent, AgentError},
    app::App,
    records::{ContainerRecord, ContainerState},
    sandbox::new_id,
};

/// For the start of the command, and for forgetting it.
const DEADLINE: Duration = Duration::from_secs(60);
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
    // Whatever happens from here on, also the caller going away, the agent forgets the command
    // and kills it if it still runs.
    let process = Process {
        agent: pod.agent.clone(),
        container: record.meta.id.clone(),
        exec_id,
    };
    let run = process.run(command);
    if timeout == 0 {
        return run.await;
    }
    tokio::time::timeout(Duration::from_secs(timeout), run)
        .await
        .map_err(|_| ContainerError::ExecTimeout {
            id: record.meta.id.clone(),
            seconds: timeout,
        })?
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

/// A command the agent knows; forgotten when dropped.
struct Process {
    agent: Agent,
    container: String,
    exec_id: String,
}

impl Process {
    async fn run(&self, args: Vec<String>) -> Result<Output, ContainerError> {
        let request = ExecRequest {
            container_id: self.container.clone(),
            exec_id: self.exec_id.clone(),
            args,
            stdin: false,
            tty: false,
            env: Vec::new(),
            cwd: String::new(),
        };
        self.agent
            .call("start the command", DEADLINE, |mut agent| async move {
                agent.exec(request).await
            })
            .await?;
        self.output().await
    }

    async fn output(&self) -> Result<Output, ContainerError> {
        const ACTION: &str = "read the command's output";
        let failed = |status| AgentError::Call {
            action: ACTION,
            status: Box::new(status),
        };
        let open = OutputRequest {
            process: Some(ProcessRef {
                container_id: self.container.clone(),
                exec_id: self.exec_id.clone(),
            }),
            ..OutputRequest::default()
        };
        // Only the newest acknowledgement counts.
        let (acknowledge, newest) = watch::channel(OutputRequest::default());
        let requests = stream::iter([open]).chain(WatchStream::from_changes(newest));
        let mut client = self.agent.client();
        let mut chunks = client.output(requests).await.map_err(failed)?.into_inner();
        let mut output = Output::default();
        let mut taken = OutputRequest::default();
        while let Some(chunk) = chunks.message().await.map_err(failed)? {
            match chunk.event {
                Some(Event::Data(data)) => {
                    let end = data.offset.saturating_add(data.data.len() as u64);
                    let (kept, seen) = match Stream::try_from(data.stream) {
                        Ok(Stream::Stdout) => (&mut output.stdout, &mut taken.stdout_offset),
                        Ok(Stream::Stderr) => (&mut output.stderr, &mut taken.stderr_offset),
                        Err(_) => {
                            return Err(ContainerError::Protocol {
                                during: ACTION,
                                what: "it sent a third output stream",
                            });
                        }
                    };
                    let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(data.data.len());
                    kept.extend_from_slice(data.data.get(..room).unwrap_or_default());
                    *seen = end;
                    acknowledge.send_replace(taken.clone());
                }
                Some(Event::Exit(exit)) => {
                    output.exit_code = exit.code;
                    return Ok(output);
                }
                None => {}
            }
        }
        Err(ContainerError::Protocol {
            during: ACTION,
            what: "it ended without the exit",
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let agent = self.agent.clone();
        let request = DeleteExecRequest {
            container_id: std::mem::take(&mut self.container),
            exec_id: std::mem::take(&mut self.exec_id),
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let forget = agent.call("forget the command", DEADLINE, |mut agent| async move {
                agent.delete_exec(request).await
            });
            if let Err(error) = forget.await {
                // It goes with its container at the latest.
                tracing::debug!(%error, "a command is not known forgotten");
            }
        });
    }
}
