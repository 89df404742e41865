//! StartContainer: open the log, one call to the agent, record it, follow the output to its end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bulkhead_proto::{
    agent::{Exit, ProcessRef, SignalProcessRequest, StartContainerRequest},
    cri::ContainerEventType,
};
use bulkhead_records::RecordsError;
use tonic::Code;

use super::{ContainerError, error::in_words, find};
use crate::{
    agent::AgentError,
    app::App,
    clock::now_ns,
    error::chain,
    logs::{LogPath, Pump, Target},
    oci::signal::SIGKILL,
    records::{ContainerRecord, ContainerState},
    sandbox::Pod,
    status,
    task::{Pauses, detached},
};

const DEADLINE: Duration = Duration::from_secs(60);
/// The exit code of a container that could not be started, as Kubernetes knows it (128: the
/// command cannot be invoked).
const START_FAILED: i32 = 128;
/// Between two tries to record an exit.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// No container runs this long; "for ever" without overflow.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Starts a created container. Runs to its end even if the caller goes away.
pub async fn start(app: Arc<App>, id: &str) -> Result<(), ContainerError> {
    let record = find::existing(&app, id)?;
    detached(async move { start_now(&app, &record.meta.id).await }).await
}

async fn start_now(app: &Arc<App>, id: &str) -> Result<(), ContainerError> {
    let live = app.containers.live(id);
    let _turn = live.turn().await;
    let record = find::existing(app, id)?;
    if record.status.state != ContainerState::Created {
        return Err(ContainerError::State {
            action: "start",
            id: id.to_owned(),
            state: in_words(record.status.state),
            needed: in_words(ContainerState::Created),
        });
    }
    let pod = app.pods.ready(&record.meta.sandbox_id)?;
    let _starting = live.starting().await;
    follow(app, &pod, &record, false).await?;
    let request = StartContainerRequest {
        container_id: id.to_owned(),
    };
    let started = pod
        .agent
        .call("start the container", DEADLINE, |mut agent| async move {
            agent.start_container(request).await
        })
        .await;
    let recorded = match started {
        Ok(answer) => record_start(app, &record, answer.started_at_unix_ns).await,
        Err(error) => {
            // The words that people know from `kubectl describe`, and nothing around them.
            let message = error.words();
            give_up(app, &pod, id, message).await;
            return Err(error.into());
        }
    };
    if let Err(error) = recorded {
        let message = format!(
            "it was started and could not be recorded: {}",
            chain(&error)
        );
        give_up(app, &pod, id, message).await;
        return Err(error);
    }
    live.notify();
    tracing::info!(container = id, pod = pod.id, "container started");
    Ok(())
}

async fn record_start(
    app: &App,
    record: &ContainerRecord,
    started_at_unix_ns: i64,
) -> Result<(), ContainerError> {
    let at = match started_at_unix_ns {
        known @ 1.. => known,
        _ => now_ns(),
    };
    let started = move |record: &mut ContainerRecord| record.status.note_start(at);
    app.records
        .containers
        .update(&record.meta.id, started)
        .await?;
    status::container_changed(app, ContainerEventType::ContainerStartedEvent, record);
    Ok(())
}

/// A start that failed half-way must not leave a process: kill it, and record why it ended.
async fn give_up(app: &Arc<App>, pod: &Pod, id: &str, message: String) {
    let request = SignalProcessRequest {
        process: Some(ProcessRef {
            container_id: id.to_owned(),
            exec_id: String::new(),
        }),
        signal: SIGKILL,
        all: true,
    };
    let killed = pod
        .agent
        .call("kill the container", DEADLINE, |mut agent| async move {
            agent.signal_process(request).await
        })
        .await;
    // Mostly there is none any more: its start has failed.
    let ended = |error: &AgentError| {
        matches!(
            error.agent_code(),
            Some(Code::NotFound | Code::FailedPrecondition)
        )
    };
    if let Err(error) = killed
        && !ended(&error)
    {
        let error = chain(&error);
        tracing::warn!(
            container = id,
            error,
            "a container that did not start is not known dead"
        );
    }
    if let Some(pump) = app.containers.live(id).pump() {
        pump.end();
    }
    let exit = Exit {
        code: START_FAILED,
        signal: 0,
        oom_killed: false,
        finished_at_unix_ns: now_ns(),
    };
    record_surely(app, id, exit, message).await;
}

/// Carries the container's output into its log from now on, and records its exit when the output
/// has been written to the end. `resume`: a daemon before this one began.
pub(super) async fn follow(
    app: &Arc<App>,
    pod: &Pod,
    record: &ContainerRecord,
    resume: bool,
) -> Result<(), ContainerError> {
    let id = record.meta.id.clone();
    let directory = app
        .records
        .sandboxes
        .get(&record.meta.sandbox_id)
        .map(|sandbox| sandbox.config.log_directory.clone())
        .unwrap_or_default();
    let target = Target {
        container: id.clone(),
        log: LogPath::new(&directory, &record.meta.config.log_path)?,
        checkpoints: app.containers.checkpoints.clone(),
    };
    let pump = Pump::start(pod.agent.clone(), target, resume).await?;
    app.containers.live(&id).set_pump(pump.clone());
    let app = Arc::clone(app);
    tokio::spawn(async move {
        if let Some(Some(exit)) = pump.ended(FOR_EVER).await
            && app.containers.live(&id).begin_ending()
        {
            ended(&app, &id, exit).await;
        }
    });
    Ok(())
}

/// The guest says that a container's process has ended. While its start is under way that waits: a
/// process that is killed because its start failed must not be told as one that ran.
pub(super) async fn ended(app: &Arc<App>, id: &str, exit: Exit) {
    let live = app.containers.live(id);
    live.note_exit(exit);
    live.decided().await;
    record_surely(app, id, exit, String::new()).await;
}

/// [`record_exit`]; if that fails (a full disk), again until it succeeds.
async fn record_surely(app: &Arc<App>, id: &str, exit: Exit, message: String) {
    let Err(error) = record_exit(app, id, exit, message.clone()).await else {
        return;
    };
    tracing::warn!(
        container = id,
        error = chain(&error),
        "its exit cannot be recorded yet, and is tried again"
    );
    let (app, id) = (Arc::clone(app), id.to_owned());
    tokio::spawn(async move {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            pauses.pause().await;
            if record_exit(&app, &id, exit, message.clone()).await.is_ok() {
                return;
            }
        }
    });
}

/// Records how a container ended. Only the first word counts; one that is gone or has not come up
/// has no end.
///
/// # Errors
/// If the record cannot be written.
pub(super) async fn record_exit(
    app: &App,
    id: &str,
    exit: Exit,
    message: String,
) -> Result<(), ContainerError> {
    let Some(record) = app.records.containers.get(id) else {
        return Ok(());
    };
    if matches!(
        record.status.state,
        ContainerState::Exited | ContainerState::Creating
    ) {
        return Ok(());
    }
    let finished = if exit.finished_at_unix_ns > 0 {
        exit.finished_at_unix_ns
    } else {
        now_ns()
    };
    let told = Arc::new(AtomicBool::new(false));
    let first = Arc::clone(&told);
    let updated = app
        .records
        .containers
        .update(id, move |record| {
            let status = &mut record.status;
            if status.state == ContainerState::Exited {
                return;
            }
            first.store(true, Ordering::Relaxed);
            status.state = ContainerState::Exited;
            status.exit_code = exit.code;
            status.oom_killed = exit.oom_killed;
            status.finished_at = finished;
            status.message = message;
        })
        .await;
    match updated {
        Ok(record) if told.load(Ordering::Relaxed) => {
            status::container_changed(app, ContainerEventType::ContainerStoppedEvent, &record);
            if let Some(pod) = app.pods.get(&record.meta.sandbox_id) {
                pod.containers_changed();
            }
            tracing::info!(
                container = id,
                code = exit.code,
                signal = exit.signal,
                oom = exit.oom_killed,
                "container exited"
            );
        }
        // It was told before, or removed meanwhile.
        Ok(_) | Err(RecordsError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    app.containers.live(id).notify();
    Ok(())
}
