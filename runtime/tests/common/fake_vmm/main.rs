//! Stands in for `bulkhead-vmm` in the daemon's own tests: it reads the same configuration, leaves
//! a process behind, and has the stand-in for a guest serve the control socket and vsock. How it
//! misbehaves is a word on the guest's command line (`vmm.cmdline`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a part of tests: it may fail by panicking, and speaks on standard output"
)]

#[path = "../guest/mod.rs"]
mod guest;

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bulkhead_contract::vmm::Config;
use bulkhead_proto::agent::Ready;
use prost::Message as _;
use tokio::{io::AsyncWriteExt as _, net::UnixStream};

use guest::{Guest, Vm};

fn main() {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next()) {
        (Some(root), Some(mode)) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(inner(PathBuf::from(root), mode));
        }
        _ => outer(),
    }
}

/// The first process: reads the configuration, starts the second, says who it is, ends.
#[allow(
    clippy::zombie_processes,
    reason = "it outlives this process: the daemon reaps it"
)]
fn outer() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let config: Config = serde_json::from_str(&text).expect("the configuration");
    let mode = config.cmdline.as_str();
    let jail = config.jail.expect("the daemon always asks for a jail");
    match mode {
        "refuse" => {
            println!(r#"{{"error": {{"kind": "io", "message": "the kernel is no ELF file"}}}}"#);
            std::process::exit(1);
        }
        "mute" => return,
        _ => {}
    }
    let me = std::process::id().to_string();
    for fd in jail.cgroup_procs_fds {
        let mut procs = std::fs::File::options()
            .write(true)
            .open(format!("/proc/self/fd/{fd}"))
            .unwrap();
        procs.write_all(me.as_bytes()).unwrap();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([jail.root.as_os_str(), mode.as_ref()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    println!("{{\"pid\": {}}}", child.id());
}

/// The second: the VM.
async fn inner(root: PathBuf, mode: String) {
    std::fs::write(root.join("console.log"), "guest: hello\n").unwrap();
    match mode.as_str() {
        "panic" => end(&root, "panic", "the guest panicked", 3),
        "vanish" => std::process::exit(9),
        "silent" => return std::future::pending().await,
        _ => {}
    }
    let vm = Vm {
        root: root.clone(),
        mode,
        stop: |root| end(root, "stopped", "", 0),
    };
    let (vsock, control) = (root.join("vsock.sock"), root.join("control.sock"));
    let _guest = Guest::start_as(Some(vm), &vsock, &control);
    let ready = Ready {
        version: "fake".to_owned(),
        agent_started_ns: 5_000_000,
        agent_ready_ns: 7_000_000,
    };
    let report = root.join("vsock.sock_1025");
    let mut host = UnixStream::connect(report).await.unwrap();
    let report = ready.encode_length_delimited_to_vec();
    host.write_all(&report).await.unwrap();
    // The report ends with its connection.
    drop(host);
    std::future::pending().await
}

/// Ends as a VMM does.
fn end(root: &Path, reason: &str, message: &str, code: i32) -> ! {
    let exit = serde_json::json!({
        "reason": reason, "message": message, "console_tail": "Kernel panic - not syncing: fake\n",
    });
    std::fs::write(root.join("exit.json"), exit.to_string()).unwrap();
    std::process::exit(code);
}
