//! What exec, attach's log and port-forward carry, beside a plain copy over vsock.

use std::{
    env,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use bulkhead_proto::cri::{
    ContainerConfig, ExecRequest, Mount, PodSandboxConfig, PortForwardRequest,
};
use bulkhead_streaming::spdy::{
    client::{self, Command, Message, follow},
    frame::Event,
};
use futures::future::try_join_all;
use tokio::time::Instant;

use super::figures::{Figures, milliseconds};
use crate::{
    Failure, Outcome, check,
    cri::{self, Cri},
    host::Host,
};

const SIZE: usize = 64 << 20;
const VSOCK_PORT: u32 = 5000;
/// Where containers have the program.
pub(super) const BULK: &str = "/bench/bulk";
const EXEC: &str = "exec, standard output";
const PLAIN: &str = "plain vsock copy";

/// Measures in a pod of its own.
///
/// # Errors
/// If anything of it does not work.
pub async fn measure(
    host: &Host,
    cri: &Cri,
    image: &str,
    repeat: usize,
    figures: &mut Figures,
) -> Outcome {
    // On a disk: the results may be a share of another machine's.
    let logs = host.state_dir().with_extension("bench-logs");
    std::fs::create_dir_all(&logs)?;
    let mut config = PodSandboxConfig {
        log_directory: logs.display().to_string(),
        ..cri::pod("bench-streams")
    };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let pod = cri.run_pod(config.clone()).await?;
    let text = format!("while true; do {BULK} out {SIZE} | nc -l -p 9000; done");
    let mut container = cri::script("c", image, &text);
    container.mounts = vec![programs()?];
    // For vsock, which the default seccomp profile keeps from containers.
    let linux = container.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let id = cri.run(&pod, &config, container).await?;

    for _ in 0..repeat {
        let began = Instant::now();
        run(cri, &id, &["true"], 0).await?;
        figures.add("exec of true", "ms", milliseconds(began.elapsed()));
    }
    for _ in 0..repeat.min(3) {
        let began = Instant::now();
        try_join_all((0..10).map(|_| run(cri, &id, &["true"], 0))).await?;
        figures.add("ten execs at once", "ms", milliseconds(began.elapsed()));
    }
    let vsock = host.run_dir().join("pods").join(&pod).join("vm/vsock.sock");
    let serve = format!(
        "{BULK} vsock {VSOCK_PORT} {SIZE} >/tmp/says 2>&1 & \
         until grep . /tmp/says; do usleep 10000; done"
    );
    let says = cri.shell(&id, &serve).await?;
    check!(says.contains("listening"), "the plain source says {says:?}");
    for _ in 0..repeat.min(3) {
        // In turn, so that what the machine does besides meets both.
        rate(figures, PLAIN, Instant::now(), copy(&vsock)?)?;
        let began = Instant::now();
        let command = [BULK, "out", &SIZE.to_string()];
        rate(figures, EXEC, began, run(cri, &id, &command, SIZE).await?)?;
        let began = Instant::now();
        rate(figures, "port-forward", began, forwarded(cri, &pod).await?)?;
    }
    log(cri, &pod, &config, image, &logs, figures).await?;
    if let (Some(plain), Some(exec)) = (figures.median(PLAIN), figures.median(EXEC)) {
        figures.hold("plain vsock copy against exec, ratio", plain / exec, 2.0);
    }
    Ok(cri.remove_pod(&pod).await?)
}

fn rate(figures: &mut Figures, name: &str, began: Instant, bytes: usize) -> Outcome {
    check!(bytes == SIZE, "{name}: {bytes} bytes of {SIZE}");
    #[allow(clippy::cast_precision_loss)]
    let mib = bytes as f64 / 1_048_576.0;
    figures.add(name, "MiB/s", mib / began.elapsed().as_secs_f64());
    Ok(())
}

async fn url(cri: &Cri, id: &str, cmd: &[&str], stdin: bool) -> Result<String, Failure> {
    let request = ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
        stdin,
        stdout: true,
        ..ExecRequest::default()
    };
    Ok(cri.runtime.clone().exec(request).await?.into_inner().url)
}

/// Runs a command to its end; how many bytes it wrote.
async fn run(cri: &Cri, id: &str, cmd: &[&str], expected: usize) -> Result<usize, Failure> {
    let url = url(cri, id, cmd, false).await?;
    let mut command = Command::start(&url, &["stdout"]).await?;
    let (mut bytes, mut status) = (0, Vec::new());
    let streams = [command.stdout, None, Some(command.error)];
    follow(&mut command.reader, streams, &mut |said| match said {
        Message::Stdout(data) => bytes += data.len(),
        Message::Stderr(_) => {}
        Message::Status(data) => status.extend_from_slice(&data),
    })
    .await?;
    let status = String::from_utf8_lossy(&status).into_owned();
    check!(status.contains("Success"), "{cmd:?}: {status}");
    check!(bytes == expected, "{cmd:?}: {bytes} bytes of {expected}");
    Ok(bytes)
}

async fn forwarded(cri: &Cri, pod: &str) -> Result<usize, Failure> {
    let request = PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: Vec::new(),
    };
    let url = cri.runtime.clone().port_forward(request).await?;
    let url = url.into_inner().url;
    let (mut reader, mut writer) = client::connect(&url, "portforward.k8s.io").await?;
    let mut request = 0;
    // The listener comes back a moment after the last connection.
    loop {
        request += 1;
        check!(request < 1000, "nothing listens in the pod");
        let number = request.to_string();
        let with = |kind| {
            [
                ("streamtype", kind),
                ("port", "9000"),
                ("requestid", &number),
            ]
        };
        writer.open(&with("error")).await?;
        let data = writer.open(&with("data")).await?;
        let mut bytes = 0;
        loop {
            let event = reader.next().await?;
            let event = event.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
            if let Event::Data {
                id,
                data: said,
                fin,
            } = event
                && id == data
            {
                bytes += said.len();
                if fin {
                    break;
                }
            }
        }
        if bytes > 0 {
            return Ok(bytes);
        }
    }
}

/// The directory of the benchmark's program for what is done in containers, as a mount.
pub(super) fn programs() -> Result<Mount, Failure> {
    let mut directory = env::current_exe()?;
    directory.pop();
    let program = directory.join("bulk");
    let name = program.display();
    check!(
        program.exists(),
        "{name} is not there: `make bench` makes it"
    );
    Ok(Mount {
        container_path: "/bench".to_owned(),
        host_path: directory.display().to_string(),
        readonly: true,
        ..Mount::default()
    })
}

/// Reads what the plain source sends.
fn copy(vsock: &Path) -> Result<usize, Failure> {
    let mut stream = UnixStream::connect(vsock)?;
    stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes())?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    let mut buffer = vec![0; 128 << 10];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            n => bytes += n,
        }
    }
}

async fn log(
    cri: &Cri,
    pod: &str,
    config: &PodSandboxConfig,
    image: &str,
    logs: &Path,
    figures: &mut Figures,
) -> Outcome {
    let mut container = ContainerConfig {
        log_path: "bulk.log".to_owned(),
        ..cri::container("log", image, &[BULK, "out", &SIZE.to_string()])
    };
    container.mounts = vec![programs()?];
    let id = cri.create(pod, config, container).await?;
    let began = Instant::now();
    cri.start(&id).await?;
    cri.exited(&id).await?;
    figures.add(
        "log, 64 MiB in lines of 1 KiB",
        "MiB/s",
        64.0 / began.elapsed().as_secs_f64(),
    );
    let size = std::fs::metadata(logs.join("bulk.log"))?.len();
    check!(size > SIZE as u64, "a log of {size} bytes");
    Ok(())
}
