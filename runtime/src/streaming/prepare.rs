//! The CRI calls Exec, Attach and PortForward: the request is checked, and answered with a URL.

use bulkhead_proto::cri as v1;
use bulkhead_streaming::{Attach, Exec, PortForward, StandardStreams, Target};

use super::StreamingError;
use crate::{app::App, container, sandbox};

/// The URL at which a command in a running container will run.
pub fn exec(app: &App, request: v1::ExecRequest) -> Result<String, StreamingError> {
    let streams = streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    if request.cmd.first().is_none_or(String::is_empty) {
        return Err(invalid(
            "cmd",
            "is empty; it needs at least the program to run",
        ));
    }
    let record = container::running(app, &request.container_id, "run a command in")?;
    let url = app.streaming.url(Target::Exec(Exec {
        container: record.meta.id.clone(),
        command: request.cmd,
        streams,
    }))?;
    Ok(url)
}

/// The URL at which a running container's own process can be attached to.
pub fn attach(app: &App, request: v1::AttachRequest) -> Result<String, StreamingError> {
    let streams = streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    let record = container::running(app, &request.container_id, "attach to")?;
    let url = app.streaming.url(Target::Attach(Attach {
        container: record.meta.id.clone(),
        streams,
    }))?;
    Ok(url)
}

/// The URL at which connections to a pod's ports can be made.
pub fn port_forward(app: &App, request: v1::PortForwardRequest) -> Result<String, StreamingError> {
    if request.pod_sandbox_id.is_empty() {
        return Err(invalid("pod_sandbox_id", "is missing"));
    }
    let ports = request.port.iter().map(|port| {
        let fits = u16::try_from(*port).ok().filter(|port| *port > 0);
        fits.ok_or_else(|| {
            invalid(
                "port",
                &format!("has {port}, which is not a TCP port (1 to 65535)"),
            )
        })
    });
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    let record = sandbox::find(app, &request.pod_sandbox_id)?;
    app.pods.ready(&record.id)?;
    let url = app.streaming.url(Target::PortForward(PortForward {
        pod: record.id.clone(),
        ports,
    }))?;
    Ok(url)
}

fn invalid(field: &'static str, what: &str) -> StreamingError {
    StreamingError::Invalid {
        field,
        what: what.to_owned(),
    }
}

fn streams(
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
) -> Result<StandardStreams, StreamingError> {
    if tty && stderr {
        return Err(invalid(
            "stderr",
            "must be false with tty: a terminal has one output, which is stdout",
        ));
    }
    if !(stdin || stdout || stderr) {
        return Err(invalid(
            "stdin, stdout, stderr",
            "are all false; at least one of them must be true",
        ));
    }
    Ok(StandardStreams {
        stdin,
        stdout,
        stderr,
        tty,
    })
}

#[cfg(test)]
mod tests {
    use super::streams;

    #[test]
    fn streams_are_checked() {
        assert!(streams(true, true, false, true).is_ok());
        assert!(streams(false, false, true, false).is_ok());
        assert!(streams(true, true, true, true).is_err());
        assert!(streams(false, false, false, false).is_err());
        assert!(streams(false, false, false, true).is_err());
    }
}
