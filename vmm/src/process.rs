//! The process: from standard input to the end of the VM.
//!
//! The caller's child reads the configuration, makes the jailed process, prints its id and ends;
//! the jailed process makes the machine, reports, serves, and leaves `exit.json`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use crate::api::{self, ConfigError};
use crate::control::{self, ControlError, ControlServer};
use crate::jail::{self, Child, JailError};
use crate::lifecycle::{self, End};
use crate::machine::{Machine, MachineError, MemoryMap, Resources};
use crate::timing::Timing;
use bulkhead_contract::exit::{Reason, Report};
use bulkhead_contract::vmm::{Config, ErrorKind, Failure, Started};
use rustix::process::{Pid, WaitOptions, waitpid};

/// A configuration is some KiB.
const MAX_CONFIG: u64 = 1 << 20;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("reading the configuration from standard input: {0}")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the VMM died during start-up and left no report; see its log")]
    Died,
    #[error("{}", .0.message)]
    Reported(Failure),
}

impl StartError {
    fn to_failure(&self) -> Failure {
        let kind = match self {
            StartError::Config(_) => ErrorKind::BadRequest,
            StartError::Read(_) | StartError::Jail(_) => ErrorKind::Io,
            StartError::Machine(error) => control::machine_kind(error),
            StartError::Control(error) => error.kind(),
            StartError::Died => ErrorKind::Internal,
            StartError::Reported(failure) => failure.kind,
        };
        Failure {
            kind,
            message: self.to_string(),
        }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let timing = Arc::new(Timing::new(Instant::now()));
    // One malloc arena: the threads allocate little, and an arena each would cost memory.
    // SAFETY: sets a number, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    match start(&timing) {
        Ok(Side::Outer { pid }) => {
            say(&Started::Pid { pid });
            ExitCode::SUCCESS
        }
        Ok(Side::Inner(end)) => ExitCode::from(lifecycle::exit_code(end)),
        Err(error) => {
            say(&Started::Error {
                error: error.to_failure(),
            });
            ExitCode::FAILURE
        }
    }
}

enum Side {
    Outer { pid: i32 },
    Inner(Reason),
}

/// One line on standard output.
fn say(started: &Started) {
    if let Ok(mut line) = serde_json::to_string(started) {
        line.push('\n');
        // A caller that does not read it gets the exit code.
        let _ = io::stdout().write_all(line.as_bytes());
    }
}

fn start(timing: &Arc<Timing>) -> Result<Side, StartError> {
    let mut json = Vec::new();
    io::stdin()
        .take(MAX_CONFIG)
        .read_to_end(&mut json)
        .map_err(StartError::Read)?;
    let config = api::parse_config(&json)?;
    timing.mark("configured");
    let mut keep = config.fds();
    keep.extend(config.jail.iter().map(|j| j.log_fd));
    jail::close_all_but(&keep)?;
    if let Some(jail) = &config.jail {
        jail::join_cgroups(&jail.cgroup_procs_fds)?;
    }
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|source| JailError::Io {
            attempted: "opening /dev/null".into(),
            source,
        })?;
    match jail::fork(config.jail.as_ref(), config.fs.is_some())? {
        Child::Outer { pid, report } => outer(pid, &report),
        Child::Inner(report) => Ok(Side::Inner(inner(&config, &null, report, timing))),
    }
}

/// An empty report means success; else it is a failure, and the child has ended.
fn outer(pid: i32, report: &[u8]) -> Result<Side, StartError> {
    if report == OK {
        return Ok(Side::Outer { pid });
    }
    // The child has closed its end only by ending.
    let _ = waitpid(Pid::from_raw(pid), WaitOptions::empty());
    match serde_json::from_slice(report) {
        Ok(failure) => Err(StartError::Reported(failure)),
        Err(_) => Err(StartError::Died),
    }
}

/// What the child reports when it runs.
const OK: &[u8] = b"ok";

fn inner(config: &Config, null: &File, mut report: UnixStream, timing: &Arc<Timing>) -> Reason {
    match set_up(config, null, timing) {
        Ok((mut machine, server)) => {
            // When nobody reads it any more the caller is gone, and the VM runs on without it.
            let _ = report.write_all(OK);
            drop(report);
            run(config, &mut machine, server)
        }
        Err(error) => {
            if let Ok(json) = serde_json::to_vec(&error.to_failure()) {
                let _ = report.write_all(&json);
            }
            Reason::Error
        }
    }
}

fn set_up(
    config: &Config,
    null: &File,
    timing: &Arc<Timing>,
) -> Result<(Machine, Option<ControlServer>), StartError> {
    // Without a /proc the metrics lack two figures.
    let memory_map = MemoryMap::open().ok();
    jail::null_stdio(
        null.as_raw_fd(),
        config.jail.as_ref().map_or(2, |j| j.log_fd),
    )?;
    let share = config.fs.as_ref().map(|fs| fs.share.as_path());
    let descriptors = match (&config.jail, share) {
        (Some(jail), share) => jail::enter(jail, share)?,
        (None, Some(_)) => Some(jail::descriptors()?),
        (None, None) => None,
    };
    timing.mark("jailed");
    let resources = Resources::take(config, descriptors)?;
    if config.jail.is_some() {
        // The file server's threads have theirs. No thread that starts from here on has any.
        jail::drop_capabilities()?;
    }
    let mut machine = Machine::new(config, resources, Arc::clone(timing))?;
    let server = match &config.control {
        Some(control) => Some(ControlServer::bind(&control.path, memory_map)?),
        None => None,
    };
    if !config.hold {
        machine.boot()?;
    }
    Ok((machine, server))
}

fn run(config: &Config, machine: &mut Machine, server: Option<ControlServer>) -> Reason {
    let end = control::serve(machine, server).unwrap_or_else(|e| End {
        reason: Reason::Error,
        message: e.to_string(),
    });
    let report = Report {
        reason: end.reason,
        message: end.message,
        console_tail: machine.shut_down(),
    };
    log(&config.id, &format!("the VM ended: {}", report.message));
    let path = exit_path(config);
    if let Err(error) = write_report(&path, &report) {
        log(&config.id, &format!("writing {}: {error}", path.display()));
    }
    report.reason
}

/// `exit.json` is where the control socket is, else where the console is: the jail's root.
fn exit_path(config: &Config) -> PathBuf {
    let beside = config
        .control
        .as_ref()
        .map_or(&config.console.path, |c| &c.path);
    beside.with_file_name("exit.json")
}

/// Whole or not at all: a reader never sees half of it.
fn write_report(path: &Path, report: &Report) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(report)?)?;
    drop(file);
    std::fs::rename(fresh, path)
}

fn log(id: &str, message: &str) {
    // A log that cannot be written must not stop anything.
    let _ = writeln!(io::stderr(), "bulkhead-vmm {id}: {message}");
}
