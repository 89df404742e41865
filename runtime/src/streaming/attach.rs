//! A container's own process: a copy of its output from now on, on its way to the log, and bytes for
//! its input.

use bulkhead_proto::agent::{ProcessRef, Stream, session_request::What};
use bulkhead_streaming::{Attach, Outcome, Session};

use super::{exec::feed, resize};
use crate::{app::App, container, error::chain, logs::Copied};

/// Attached until the process ends, the client goes away, or it does not read.
pub(super) async fn serve(app: &App, attach: Attach, mut session: Session) {
    let gone = session.gone();
    let outcome = tokio::select! {
        outcome = run(app, attach, &mut session) => outcome,
        () = gone => return,
    };
    session.finish(outcome).await;
}

async fn run(app: &App, attach: Attach, session: &mut Session) -> Outcome {
    match attached(app, attach, session).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Failed(chain(&error)),
    }
}

async fn attached(
    app: &App,
    attach: Attach,
    session: &mut Session,
) -> Result<Outcome, container::ContainerError> {
    let record = container::running(app, &attach.container, "attach to")?;
    let agent = app.pods.ready(&record.meta.sandbox_id)?.agent.clone();
    let process = ProcessRef {
        container_id: attach.container.clone(),
        exec_id: String::new(),
    };
    // First the output: what is typed may be answered at once.
    let mut copy = container::follow_output(app, &attach.container).await?;
    let write = match &session.stdin {
        Some(_) => {
            let connection = agent
                .session("attach to the input", What::Input(process.clone()))
                .await?;
            // The agent says nothing on it.
            let (_read, write) = connection.into_split();
            Some(write)
        }
        None => None,
    };
    let stdin = session.stdin.take();
    let input = async {
        match write {
            Some(write) => feed(stdin, write).await,
            None => std::future::pending().await,
        }
    };
    let sizes = session.sizes.take();
    let output = async {
        while let Some(copied) = copy.next().await {
            let (stream, data) = match copied {
                Copied::Data(stream, data) => (stream, data),
                Copied::TooSlow => {
                    return Outcome::Failed(
                        "the client did not read the output for too long and was detached; the \
                         whole output is in the log"
                            .to_owned(),
                    );
                }
            };
            let to = match stream {
                Stream::Stdout => &session.stdout,
                Stream::Stderr => &session.stderr,
            };
            if let Some(to) = to {
                let _gone = to.send(data).await;
            }
        }
        Outcome::Done
    };
    Ok(tokio::select! {
        outcome = output => outcome,
        never = input => match never {},
        never = resize::follow(&agent, process, sizes) => match never {},
    })
}
