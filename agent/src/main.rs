//! `bulkhead-agent`: PID 1 of a pod's guest. With `--host` the agent of a pod on the host, as the
//! JSON document on its standard input says. `--listen unix:PATH` serves the same calls on a Unix
//! socket, for tests.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bulkhead_agent::container::Containers;
use bulkhead_agent::host::{Pod, sealed};
use bulkhead_agent::init::{self, steps};
use bulkhead_agent::launcher::{Launcher, server};
use bulkhead_agent::paths::{GUEST_BASE, Paths};
use bulkhead_agent::process::reaper::Reaper;
use bulkhead_agent::report::{Report, report};
use bulkhead_agent::rpc::Agent;
use bulkhead_agent::serve::{self, Listener};
use bulkhead_agent::{clock, console};
use bulkhead_contract::exit::Reason;
use bulkhead_proto::agent::{AGENT_PORT, Ready};
use tokio::signal::unix::{SignalKind, signal};

/// The grace period of containers when a signal ends the agent.
const SIGNAL_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Mode {
    Guest,
    Host,
    Socket { path: PathBuf, state: PathBuf },
}

fn parse_arguments() -> Result<(Mode, bool), String> {
    let mut arguments = std::env::args().skip(1);
    let (mut listen, mut state) = (None, PathBuf::from(GUEST_BASE));
    let (mut debug, mut host) = (false, false);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--listen" => {
                let address = value()?;
                let path = address.strip_prefix("unix:").map(PathBuf::from);
                listen = Some(path.ok_or(format!("--listen {address}: not unix:PATH"))?);
            }
            "--host" => host = true,
            "--state" => state = value()?.into(),
            // On a guest's kernel command line, where it stands without the dashes.
            "--agent-debug" | "agent_debug" => debug = true,
            // The kernel passes on arguments that it does not know from its command line.
            _ if std::process::id() == 1 => {}
            _ => {
                return Err(format!(
                    "{argument}: known are --host, --listen unix:PATH and --state DIR"
                ));
            }
        }
    }
    match listen {
        _ if host => Ok((Mode::Host, debug)),
        Some(path) => Ok((Mode::Socket { path, state }, debug)),
        None if std::process::id() == 1 => Ok((Mode::Guest, debug)),
        None => Err("not PID 1 of a guest: --host or --listen unix:PATH is needed".to_owned()),
    }
}

fn main() -> ExitCode {
    let started = clock::boottime_ns();
    let (mode, debug) = match parse_arguments() {
        Ok(parsed) => parsed,
        Err(error) => return fail(&error),
    };
    if matches!(mode, Mode::Host)
        && let Err(error) = sealed::ensure()
    {
        if let Ok(pod) = Pod::read() {
            pod.write_exit(Reason::Error, &report(&error));
        }
        return fail(&Report(&error));
    }
    let guest = matches!(mode, Mode::Guest);
    if guest && let Err(error) = init::bring_up() {
        return fail(&Report(&error));
    }
    console::log_to_stderr(debug);
    tracing::debug!("the first line");
    if guest {
        init::parameters::set_all();
        steps::done("parameters");
    }
    let pod = match mode {
        Mode::Host => match Pod::read() {
            Ok(pod) => Some(Arc::new(pod)),
            Err(error) => return fail(&Report(&error)),
        },
        Mode::Guest | Mode::Socket { .. } => None,
    };
    let fail = |error: &dyn std::fmt::Display| {
        if let Some(pod) = &pod {
            pod.write_exit(Reason::Error, &error.to_string());
        }
        fail(error)
    };
    if let Some(pod) = &pod
        && let Err(error) = pod.enter()
    {
        return fail(&Report(&error));
    }
    // SAFETY: the process has one thread: the runtime, which makes others, starts below.
    let launcher = match unsafe { server::spawn() } {
        Ok(socket) => socket,
        Err(error) => return fail(&format!("forking the launcher: {error}")),
    };
    steps::done("launcher");
    // One thread for the service: the agent waits more than it works, and the guest may have one
    // processor. What blocks goes to tokio's other threads.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("starting the runtime: {error}")),
    };
    match runtime.block_on(run(mode, pod.clone(), launcher, started)) {
        Ok(()) if guest => match init::power::off() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("powering off the guest: {error}")),
        },
        Ok(()) => {
            if let Some(pod) = &pod {
                pod.write_exit(Reason::Stopped, "");
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&Report(&*error)),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    console::fatal(error);
    // The end of PID 1 is the guest's panic, which the VMM notices and reports with this line.
    ExitCode::FAILURE
}

async fn run(
    mode: Mode,
    pod: Option<Arc<Pod>>,
    launcher: std::os::fd::OwnedFd,
    started: u64,
) -> Result<(), Box<dyn std::error::Error>> {
    let children = Reaper::subscribe()?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (paths, listener) = match &mode {
        Mode::Guest => (Paths::new(GUEST_BASE), Listener::vsock(AGENT_PORT)?),
        Mode::Host => {
            let pod = pod.clone().ok_or("the pod's configuration is missing")?;
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
            let listener = Listener::unix(&pod.socket)?;
            (Paths::on_host(pod)?, listener)
        }
        Mode::Socket { path, state } => {
            // Without cgroup v2 everything but containers works.
            if let Err(error) = init::delegate_controllers(Path::new("/sys/fs/cgroup")) {
                tracing::warn!(error = %Report(&error), "containers cannot run here");
            }
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
            (Paths::new(state), Listener::unix(path)?)
        }
    };
    for directory in [
        paths.containers(),
        paths.layers(),
        paths.scratch(),
        paths.sandbox(),
    ] {
        std::fs::create_dir_all(directory)?;
    }
    let reaper = Reaper::default();
    tokio::spawn(reaper.clone().run(children));
    let containers = Arc::new(Containers::new(paths, Launcher::new(launcher, reaper)));
    let agent = Agent::new(Arc::clone(&containers));
    tokio::spawn(listener.serve(agent.clone()));
    steps::done("serving");
    let ready = Ready {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        agent_started_ns: started,
        agent_ready_ns: clock::boottime_ns(),
    };
    match (mode, pod) {
        // A host that does not listen may still connect later.
        (Mode::Guest, _) => {
            if let Err(error) = serve::report_ready(&ready).await {
                tracing::warn!(error = %Report(&error), "the agent serves, but could not report that to the host");
            }
        }
        // A daemon that restarts does not take over a pod that never became ready.
        (Mode::Host, Some(pod)) => pod.report_ready(&ready).await?,
        (Mode::Host | Mode::Socket { .. }, _) => {}
    }
    steps::done("ready");
    tokio::select! {
        () = agent.wait_power_off() => drain_answer().await,
        _ = terminate.recv() => containers.end_all(SIGNAL_GRACE).await,
        _ = interrupt.recv() => containers.end_all(SIGNAL_GRACE).await,
    }
    Ok(())
}

/// Lets the answer to PowerOff leave the guest. There is no sign that the host has it; one that
/// misses it sees the guest go down all the same.
async fn drain_answer() {
    clock::back_off(Duration::from_millis(100)).await;
}
