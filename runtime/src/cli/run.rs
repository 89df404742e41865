//! `bulkhead run IMAGE [CMD…]`: one pod with one container, attached, no kubelet. The output is
//! the container's log, followed; the exit code is the container's; nothing is left behind.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use bulkhead_proto::{agent::Stream, cri};
use clap::Args;
use tokio::{
    fs::File,
    io::AsyncReadExt as _,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    client::{ClientError, Daemon, block_on, failed},
    output::fail,
};
use crate::{config::Config, id::new_id, logs::parse_line};

/// How often the log and the container are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The daemon is asked for the container's state once in this many looks.
const ASK_EVERY: u32 = 3;
/// What Ctrl-C leaves the container.
const GRACE_SECONDS: i64 = 10;
/// Log lines are at most 16 KiB and a header; a longer one is not ours.
const LONGEST_LINE: usize = 64 * 1024;

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The image; pulled if it is not on this node
    image: String,
    /// The command and its arguments, in place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Set an environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Run as this user: a name or a number
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Work in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// All capabilities and devices of the guest (the node is not touched)
    #[arg(long)]
    privileged: bool,
    /// Remove the pod at the end (always done; taken for habit's sake)
    #[arg(long)]
    rm: bool,
    /// Say on standard error what is being done
    #[arg(short, long)]
    verbose: bool,
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

/// The command failed (its container's own failure is an exit code, not this).
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("the daemon's answer is incomplete: {0} is missing")]
    Incomplete(&'static str),
}

/// Runs it.
pub fn run(args: Run) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    match block_on(run_pod(&args, &config)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error),
    }
}

async fn run_pod(args: &Run, config: &Config) -> Result<u8, RunError> {
    let daemon = Daemon::connect(&config.paths.socket).await?;
    let mut signals = Signals::new().map_err(RunError::Signals)?;
    let image = have_image(&daemon, args).await?;
    let name = format!(
        "run-{}",
        new_id().unwrap_or_default().get(..8).unwrap_or("x")
    );
    // A directory of our own, so that two runs share nothing.
    let logs = std::env::temp_dir().join(format!("bulkhead-{name}"));
    let io = |action, path: &Path, source| RunError::Io {
        action,
        path: path.to_owned(),
        source,
    };
    std::fs::create_dir(&logs).map_err(|e| io("make the directory", &logs, e))?;
    let result = in_logs(&daemon, args, image, &name, &logs, &mut signals).await;
    let removed = std::fs::remove_dir_all(&logs).map_err(|e| io("remove", &logs, e));
    result.and_then(|code| removed.map(|()| code))
}

/// Finds the image, or pulls it.
async fn have_image(daemon: &Daemon, args: &Run) -> Result<cri::ImageSpec, RunError> {
    let spec = cri::ImageSpec {
        image: args.image.clone(),
        ..Default::default()
    };
    let request = cri::ImageStatusRequest {
        image: Some(spec.clone()),
        verbose: false,
    };
    let there = daemon
        .images()
        .image_status(request)
        .await
        .map_err(failed("look for the image"))?;
    if there.into_inner().image.is_none() {
        say(args, &format!("pulling {}", args.image));
        let request = cri::PullImageRequest {
            image: Some(spec.clone()),
            ..Default::default()
        };
        daemon
            .images()
            .pull_image(request)
            .await
            .map_err(failed("pull the image"))?;
    }
    Ok(spec)
}

async fn in_logs(
    daemon: &Daemon,
    args: &Run,
    image: cri::ImageSpec,
    name: &str,
    logs: &Path,
    signals: &mut Signals,
) -> Result<u8, RunError> {
    let begun = Instant::now();
    let pod = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: name.to_owned(),
            namespace: "bulkhead-run".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                privileged: args.privileged,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    say(args, "starting the pod");
    let request = cri::RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: String::new(),
    };
    let answer = daemon
        .runtime()
        .run_pod_sandbox(request)
        .await
        .map_err(failed("start the pod"))?;
    let pod_id = answer.into_inner().pod_sandbox_id;
    say(
        args,
        &format!(
            "pod {pod_id} is up after {:.2} s",
            begun.elapsed().as_secs_f64()
        ),
    );
    let result = in_pod(daemon, args, image, pod, &pod_id, signals).await;
    let gone = remove_pod(daemon, &pod_id).await;
    // The first failure is the one to report.
    result.and_then(|code| gone.map(|()| code))
}

async fn remove_pod(daemon: &Daemon, id: &str) -> Result<(), RunError> {
    let pod_sandbox_id = id.to_owned();
    let stop = cri::StopPodSandboxRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
    };
    daemon
        .runtime()
        .stop_pod_sandbox(stop)
        .await
        .map_err(failed("stop the pod"))?;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id };
    daemon
        .runtime()
        .remove_pod_sandbox(remove)
        .await
        .map_err(failed("remove the pod"))?;
    Ok(())
}

async fn in_pod(
    daemon: &Daemon,
    args: &Run,
    image: cri::ImageSpec,
    pod: cri::PodSandboxConfig,
    pod_id: &str,
    signals: &mut Signals,
) -> Result<u8, RunError> {
    let log = Path::new(&pod.log_directory).join("container.log");
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod_id.to_owned(),
        config: Some(container(args, image)),
        sandbox_config: Some(pod),
    };
    let answer = daemon
        .runtime()
        .create_container(request)
        .await
        .map_err(failed("create the container"))?;
    let id = answer.into_inner().container_id;
    let start = cri::StartContainerRequest {
        container_id: id.clone(),
    };
    daemon
        .runtime()
        .start_container(start)
        .await
        .map_err(failed("start the container"))?;
    attached(daemon, &id, &log, signals).await
}

fn container(args: &Run, image: cri::ImageSpec) -> cri::ContainerConfig {
    let mut context = cri::LinuxContainerSecurityContext {
        privileged: args.privileged,
        // Alone in its pod, the command is process 1, as it would be elsewhere.
        namespace_options: Some(cri::NamespaceOption {
            pid: cri::NamespaceMode::Container as i32,
            ..Default::default()
        }),
        seccomp: Some(cri::SecurityProfile::default()),
        ..Default::default()
    };
    if let Some(user) = &args.user {
        match user.parse::<i64>() {
            Ok(value) => context.run_as_user = Some(cri::Int64Value { value }),
            Err(_) => context.run_as_username.clone_from(user),
        }
    }
    let variable = |(key, value): &(String, String)| cri::KeyValue {
        key: key.clone(),
        value: value.clone().into_bytes(),
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: "run".to_owned(),
            attempt: 0,
        }),
        image: Some(image),
        command: Vec::new(),
        // In place of the image's cmd: an entrypoint stays, as with other tools' `run`.
        args: args.command.clone(),
        working_dir: args.workdir.clone().unwrap_or_default(),
        envs: args.env.iter().map(variable).collect(),
        log_path: "container.log".to_owned(),
        linux: Some(cri::LinuxContainerConfig {
            resources: None,
            security_context: Some(context),
        }),
        ..Default::default()
    }
}

/// Shows the log as it grows until the container has exited; gives its exit code. The first
/// signal stops the container, a second one kills it.
async fn attached(
    daemon: &Daemon,
    id: &str,
    log: &Path,
    signals: &mut Signals,
) -> Result<u8, RunError> {
    let mut follower = Follower::open(log).await?;
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since_asked = 0;
    let mut interrupted = 0u32;
    loop {
        tokio::select! {
            () = signals.next() => {
                interrupted += 1;
                let timeout = if interrupted == 1 { GRACE_SECONDS } else { 0 };
                let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
                let daemon = daemon.clone();
                // Not waited for: its output is still shown, and its exit is seen below.
                tokio::spawn(async move {
                    let stopped = daemon.runtime().stop_container(request).await;
                    if let Err(status) = stopped {
                        fail(&failed("stop the container")(status));
                    }
                });
            }
            _ = looks.tick() => {
                follower.show().await?;
                since_asked += 1;
                if since_asked < ASK_EVERY {
                    continue;
                }
                since_asked = 0;
                if let Some(code) = exit_code(daemon, id).await? {
                    // "Exited" is said after the last line is in the log.
                    follower.show().await?;
                    return Ok(code);
                }
            }
        }
    }
}

async fn exit_code(daemon: &Daemon, id: &str) -> Result<Option<u8>, RunError> {
    let request = cri::ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let answer = daemon
        .runtime()
        .container_status(request)
        .await
        .map_err(failed("say how the container is"))?
        .into_inner();
    let status = answer
        .status
        .ok_or(RunError::Incomplete("the container's status"))?;
    if status.state != cri::ContainerState::ContainerExited as i32 {
        return Ok(None);
    }
    if !status.message.is_empty() || status.reason == "OOMKilled" {
        say_always(&format!(
            "the container ended: {} {}",
            status.reason, status.message
        ));
    }
    Ok(Some(u8::try_from(status.exit_code).unwrap_or(u8::MAX)))
}

/// Turns a growing CRI log back into the container's output.
struct Follower {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
}

impl Follower {
    async fn open(path: &Path) -> Result<Self, RunError> {
        let file = File::open(path).await.map_err(|source| RunError::Io {
            action: "open the container's log",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            line: Vec::new(),
        })
    }

    async fn show(&mut self) -> Result<(), RunError> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let failed = |action, source| RunError::Io {
                action,
                path: self.path.clone(),
                source,
            };
            let read = self
                .file
                .read(&mut buffer)
                .await
                .map_err(|e| failed("read the log", e))?;
            if read == 0 {
                return Ok(());
            }
            let mut rest = buffer.get(..read).unwrap_or_default();
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                self.line
                    .extend_from_slice(rest.get(..end).unwrap_or_default());
                print(&self.line).map_err(|e| failed("show the output of", e))?;
                self.line.clear();
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            if self.line.len() + rest.len() <= LONGEST_LINE {
                self.line.extend_from_slice(rest);
            }
        }
    }
}

fn print(line: &[u8]) -> io::Result<()> {
    let Some(line) = parse_line(line) else {
        return Ok(());
    };
    let end: &[u8] = if line.full { b"\n" } else { b"" };
    match line.stream {
        Stream::Stdout => {
            let mut out = io::stdout().lock();
            out.write_all(line.content)?;
            out.write_all(end)?;
            out.flush()
        }
        Stream::Stderr => {
            let mut err = io::stderr().lock();
            err.write_all(line.content)?;
            err.write_all(end)
        }
    }
}

/// What asks the container to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn say(args: &Run, text: &str) {
    if args.verbose {
        say_always(text);
    }
}

#[allow(clippy::print_stderr)] // Beside the container's output, which has standard output.
fn say_always(text: &str) {
    eprintln!("bulkhead: {text}");
}
