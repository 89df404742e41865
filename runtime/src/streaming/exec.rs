//! A command with its streams: a session with the agent, whose connection's end is the command's.

use std::convert::Infallible;

use bulkhead_proto::agent::{self as api, ExecRequest};
use bulkhead_streaming::{
    Exec, Outcome, Session,
    channel::{Incoming, Outgoing},
};
use tokio::{io::AsyncWriteExt as _, net::unix::OwnedWriteHalf};

use super::resize;
use crate::{
    agent::{Agent, AgentError, Command, Event, Frames},
    app::App,
    container,
    error::chain,
    id::new_id,
};

/// Runs the command to its end. A client that goes away ends it.
pub(super) async fn serve(app: &App, exec: Exec, mut session: Session) {
    let gone = session.gone();
    let outcome = tokio::select! {
        outcome = run(app, exec, &mut session) => outcome,
        () = gone => return,
    };
    session.finish(outcome).await;
}

async fn run(app: &App, exec: Exec, session: &mut Session) -> Outcome {
    let failed = |error: &dyn std::error::Error| Outcome::Failed(chain(error));
    let record = match container::running(app, &exec.container, "run a command in") {
        Ok(record) => record,
        Err(error) => return failed(&error),
    };
    let agent = match app.pods.ready(&record.meta.sandbox_id) {
        Ok(pod) => pod.agent.clone(),
        Err(error) => return failed(&error),
    };
    let exec_id = match new_id() {
        Ok(id) => id,
        Err(error) => return failed(&error),
    };
    match command(&agent, exec, exec_id, session).await {
        Ok(exit) => Outcome::Exit(exit.code),
        Err(error) => failed(&error),
    }
}

async fn command(
    agent: &Agent,
    exec: Exec,
    exec_id: String,
    session: &mut Session,
) -> Result<api::Exit, AgentError> {
    let request = ExecRequest {
        container_id: exec.container,
        exec_id,
        args: exec.command,
        stdin: exec.streams.stdin,
        tty: exec.streams.tty,
    };
    let Command {
        process,
        output: frames,
        input,
    } = Command::start(agent, request).await?;
    let (stdin, sizes) = (session.stdin.take(), session.sizes.take());
    tokio::select! {
        exit = output(frames, session.stdout.as_ref(), session.stderr.as_ref()) => exit,
        never = feed(stdin, input) => match never {},
        never = resize::follow(agent, process, sizes) => match never {},
    }
}

/// Carries input to its end; then waits for ever, so that it can stand beside what decides the
/// session's end.
pub(super) async fn feed(stdin: Option<Incoming>, mut write: OwnedWriteHalf) -> Infallible {
    let Some(mut stdin) = stdin else {
        // Held open: its end would be the end of the session for the agent.
        return std::future::pending().await;
    };
    let mut open = true;
    while let Some(data) = stdin.next().await {
        // A process that takes no more does not hold the client up: its input is dropped.
        open = open && write.write_all(&data).await.is_ok();
    }
    if open && !stdin.was_reset() {
        let _gone = write.shutdown().await;
    }
    std::future::pending().await
}

/// Carries output to the client until the exit.
async fn output(
    mut frames: Frames,
    stdout: Option<&Outgoing>,
    stderr: Option<&Outgoing>,
) -> Result<api::Exit, AgentError> {
    loop {
        let (to, data) = match frames.next().await? {
            Event::Exit(exit) => return Ok(exit),
            Event::Data(output, data) => match output.stream {
                api::Stream::Stdout => (stdout, data),
                api::Stream::Stderr => (stderr, data),
            },
        };
        // What the client did not ask for, or no longer wants, is read and dropped, so that the
        // command does not block on it.
        if let Some(to) = to {
            let _gone = to.send(data).await;
        }
    }
}
