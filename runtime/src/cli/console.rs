//! `bulkhead console POD`: a guest's serial console, from its beginning, and on as it grows.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::inotify,
};

use super::output::fail;
use crate::{
    config::Config,
    machine::host::HostDir,
    machine::vm::{JailDir, jail},
};

/// Changes wake us; this is only for what inotify does not report.
const LOOK_EVERY: Timespec = Timespec {
    tv_sec: 2,
    tv_nsec: 0,
};

/// Arguments of `console`.
#[derive(Debug, Args)]
pub struct Console {
    /// The pod sandbox's id, or its beginning
    pod: String,
    /// Print what is there and exit
    #[arg(long)]
    no_follow: bool,
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The console cannot be shown.
#[derive(Debug, thiserror::Error)]
enum ConsoleError {
    #[error("no running pod's id begins with {0:?}; `crictl pods` lists them")]
    NoPod(String),
    #[error("more than one pod's id begins with {0:?}: {1}")]
    Several(String, String),
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Runs it: ends when the pod goes.
pub fn run(args: Console) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    let shown =
        pod_dir(&config, &args.pod).and_then(|dir| show(&console_of(&dir), !args.no_follow));
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// A guest's console; of a pod on the host the log of its agent.
fn console_of(pod_dir: &Path) -> PathBuf {
    let host = HostDir::of_pod(pod_dir);
    match host.root().is_dir() {
        true => host.log(),
        false => JailDir::of_pod(pod_dir).console(),
    }
}

/// The directory of the pod whose id begins so. Read from the disk, so that it works without a
/// daemon.
fn pod_dir(config: &Config, beginning: &str) -> Result<PathBuf, ConsoleError> {
    let pods = config.paths.run_dir.join("pods");
    let entries = std::fs::read_dir(&pods).map_err(|source| ConsoleError::Io {
        action: "read",
        path: pods.clone(),
        source,
    })?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| crate::id::is_id(name) && name.starts_with(beginning))
        .collect();
    match (names.pop(), names.as_slice()) {
        (Some(name), []) => Ok(pods.join(name)),
        (None, _) => Err(ConsoleError::NoPod(beginning.to_owned())),
        (Some(name), others) => {
            let all = format!("{name} {}", others.join(" "));
            Err(ConsoleError::Several(beginning.to_owned(), all))
        }
    }
}

fn show(path: &Path, follow: bool) -> Result<(), ConsoleError> {
    let io = |action| {
        move |source| ConsoleError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    let mut file = jail::open_file(path).map_err(io("open"))?;
    let changes = changes(path).map_err(io("watch"))?;
    loop {
        copy(&mut file).map_err(io("show"))?;
        let data = file.metadata().map_err(io("look at"))?;
        if !follow || data.nlink() == 0 {
            return Ok(());
        }
        // A log that reached its limit starts over.
        if file.stream_position().map_err(io("read"))? > data.len() {
            file.rewind().map_err(io("read"))?;
            continue;
        }
        wait(&changes).map_err(io("watch"))?;
    }
}

fn copy(file: &mut File) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut buffer = [0; 8192];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return out.flush();
        }
        // The guest chose these bytes: no escapes to the operator's terminal.
        let text = jail::printable(buffer.get(..read).unwrap_or_default());
        out.write_all(text.as_bytes())?;
    }
}

fn changes(path: &Path) -> io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let what = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::DELETE_SELF;
    inotify::add_watch(&fd, path, what)?;
    Ok(fd)
}

fn wait(changes: &OwnedFd) -> io::Result<()> {
    let mut fds = [PollFd::new(changes, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&LOOK_EVERY)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    // What changed does not matter: all events are taken at once.
    let mut events = [0; 4096];
    match rustix::io::read(changes, &mut events) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
