//! A container's first process, by libcontainer, up to the point where it waits for the start.
//! Runs in a worker.

use std::collections::HashMap;
use std::error::Error as _;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::{SyscallType, create_syscall};
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::Spec;
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::message::{ChildStdio, CreateRequest, Failure, FailureKind};
use super::server::Started;
use super::{payload, terminal};

/// How libcontainer starts the payload: our way, so that a command that cannot run is told apart.
#[derive(Debug, Clone)]
struct PayloadExecutor {
    // libcontainer clones the executor across its forks, so it holds the number of a descriptor
    // that stays open in the worker, not an owner.
    status: RawFd,
}

impl PayloadExecutor {
    fn report(&self, failure: &Failure) {
        // SAFETY: the worker keeps this descriptor open for as long as it and its children run,
        // and ManuallyDrop leaves closing it to the end of the process.
        let fd = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(self.status) });
        if let Ok(fd) = fd.try_clone() {
            payload::report(fd, failure);
        }
    }
}

impl Executor for PayloadExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let failure = payload::execute(process);
        self.report(&failure);
        Err(ExecutorError::Other(failure.message))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref().ok_or_else(|| {
            ExecutorValidationError::ArgValidationError("the spec has no process".into())
        })?;
        payload::find(process).map(drop).map_err(|failure| {
            self.report(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The payload gets exactly the spec's environment at execve.
        Ok(())
    }
}

/// Builds the container.
///
/// # Errors
/// Why it cannot be; libcontainer has then removed what it made.
pub fn run(request: &CreateRequest, stdio: Option<ChildStdio>) -> Result<Started, Failure> {
    let internal = |text: String| Failure::new(FailureKind::Internal, text);
    // A pipe, not a socket: the process must not be able to send anything back but one message.
    let (status_read, status_write) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
            .map_err(|error| internal(format!("making the status pipe failed: {error}")))?;
    let console = request.bundle.join("console.sock");
    let listener = if request.tty {
        Some(UnixListener::bind(&console).map_err(|error| {
            internal(format!(
                "binding the console socket {} failed: {error}",
                console.display()
            ))
        })?)
    } else {
        None
    };

    let syscall = create_syscall();
    for limit in &request.rlimits {
        syscall.set_rlimit(limit).map_err(|error| {
            Failure::new(
                FailureKind::InvalidSpec,
                format!("limit {:?}: {error}", limit.typ()),
            )
        })?;
    }
    let executor = PayloadExecutor {
        status: status_write.as_raw_fd(),
    };
    let build = || -> Result<Option<i32>, LibcontainerError> {
        let mut builder = ContainerBuilder::new(request.id.clone(), SyscallType::default())
            .with_root_path(&request.state)?
            .with_executor(executor)
            .validate_id()?;
        if let Some(stdio) = stdio {
            builder = builder
                .with_stdin(stdio.stdin)
                .with_stdout(stdio.stdout)
                .with_stderr(stdio.stderr);
        }
        if request.tty {
            builder = builder.with_console_socket(Some(&console));
        }
        let container = builder
            .as_init(&request.bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()?;
        Ok(container.pid().map(|pid| pid.as_raw()))
    };
    let built = build();
    drop(status_write);
    let pid = built
        .map_err(|error| reported(&status_read).unwrap_or_else(|| convert(&request.id, &error)))?
        .and_then(Pid::from_raw)
        .ok_or_else(|| internal("libcontainer built a container without a process".into()))?;

    let mut fds = vec![status_read];
    if let Some(listener) = listener {
        match terminal::accept_master(&listener) {
            Ok(master) => fds.push(master),
            Err(error) => {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                return Err(internal(format!(
                    "receiving the container's terminal failed: {error}"
                )));
            }
        }
        let _ = std::fs::remove_file(&console);
    }
    Ok((pid, fds))
}

/// What the container's process itself said about its failure, if it came that far.
fn reported(status: &OwnedFd) -> Option<Failure> {
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(status.try_clone().ok()?);
    // Not at its end while the process dies; what is there was written before libcontainer gave up.
    let _ = file.read_to_end(&mut bytes);
    serde_json::from_slice(&bytes).ok()
}

fn convert(id: &str, error: &LibcontainerError) -> Failure {
    let kind = match error {
        LibcontainerError::InvalidID(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::InvalidSpec(_)
        | LibcontainerError::InvalidInput(_)
        | LibcontainerError::Spec(_)
        | LibcontainerError::UserNamespace(_) => FailureKind::InvalidSpec,
        _ => FailureKind::Internal,
    };
    let mut text = format!("building container {id} failed: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    Failure::new(kind, text)
}
