//! Stands in for `bulkhead-vmm` in the daemon's own tests: it reads the same configuration, leaves
//! a process behind, serves the control socket, and behind the vsock socket an agent that answers
//! but runs nothing. How it misbehaves is a word on the guest's command line (`vmm.cmdline`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a part of tests: it may fail by panicking, and speaks on standard output"
)]

mod agent;

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use bulkhead_contract::vmm::Config;
use bulkhead_proto::agent::Ready;
use prost::Message as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

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
    let vsock = UnixListener::bind(root.join("vsock.sock")).unwrap();
    let control = UnixListener::bind(root.join("control.sock")).unwrap();
    tokio::spawn(serve_control(control, root.clone(), mode.clone()));
    let (streams, incoming) = mpsc::channel(16);
    tokio::spawn(handshakes(vsock, streams));
    let service = agent::Fake::new(root.clone(), mode).service();
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(incoming));
    let report = async {
        let ready = Ready {
            version: "fake".to_owned(),
            agent_started_ns: 5_000_000,
            agent_ready_ns: 7_000_000,
        };
        let mut host = UnixStream::connect(root.join("vsock.sock_1025"))
            .await
            .unwrap();
        host.write_all(&ready.encode_length_delimited_to_vec())
            .await
            .unwrap();
    };
    let (served, ()) = tokio::join!(serving, report);
    served.unwrap();
}

/// `CONNECT port`, `OK port`, then the agent's.
async fn handshakes(vsock: UnixListener, streams: mpsc::Sender<std::io::Result<UnixStream>>) {
    loop {
        let (stream, _) = vsock.accept().await.unwrap();
        let mut stream = BufReader::with_capacity(1, stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        if line != "CONNECT 1024\n" {
            continue;
        }
        let mut stream = stream.into_inner();
        stream.write_all(b"OK 1073741824\n").await.unwrap();
        streams.send(Ok(stream)).await.unwrap();
    }
}

async fn serve_control(listener: UnixListener, root: PathBuf, mode: String) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        while let Ok(length) = stream.read_u32_le().await {
            let mut body = vec![0; length.try_into().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let request: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let answer = if request.get("attach").is_some() {
                r#"{"ok": {"slot": "00:05.0"}}"#
            } else if request.get("metrics").is_some() {
                r#"{"ok": {"metrics": {"vmm_rss_bytes": 1}}}"#
            } else if request.get("stop").is_some() {
                if mode == "stubborn" {
                    continue;
                }
                end(&root, "stopped", "", 0)
            } else if request.get("detach").is_some() {
                r#"{"ok": {}}"#
            } else {
                r#"{"error": {"kind": "unsupported", "message": "not in the fake"}}"#
            };
            let length = u32::try_from(answer.len()).unwrap();
            stream.write_all(&length.to_le_bytes()).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

/// Ends as a VMM does.
fn end(root: &Path, reason: &str, message: &str, code: i32) -> ! {
    let exit = serde_json::json!({
        "reason": reason, "message": message, "console_tail": "Kernel panic - not syncing: fake\n",
    });
    std::fs::write(root.join("exit.json"), exit.to_string()).unwrap();
    std::process::exit(code);
}
