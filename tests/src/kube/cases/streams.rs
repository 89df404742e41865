//! exec, attach, cp, port-forward, logs, debug: on the one pod of the web server.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::super::{
    case::Case,
    cluster::Cluster,
    manifests::{BUSYBOX, container, web},
};
use crate::{Failure, Outcome, case, check};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case!(exec_has_streams_and_a_status),
        case!(attach_reaches_a_running_container),
        case!(cp_is_byte_exact_both_ways),
        case!(port_forward_reaches_the_web_server),
        case!(logs_follow),
        case!(debug_sees_its_target),
    ]
}

/// What kubectl shall say within this time.
const SOON: Duration = Duration::from_secs(120);

/// Reads lines until one contains `part`.
async fn line_with(
    lines: &mut (impl AsyncBufReadExt + Unpin),
    part: &str,
) -> Result<String, Failure> {
    let mut seen = String::new();
    let reading = async {
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).await? == 0 {
                return Err(Failure::from(format!("no line with {part:?} in {seen:?}")));
            }
            if line.contains(part) {
                return Ok(line);
            }
            seen.push_str(&line);
        }
    };
    timeout(SOON, reading)
        .await
        .map_err(|_| format!("waited {SOON:?} for a line with {part:?}"))?
}

async fn exec_has_streams_and_a_status(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let command = "cat; echo error >&2; exit 7";
    let args = ["exec", "-i", &pod, "-c", "web", "--", "sh", "-c", command];
    let (status, out, err) = cluster.kubectl.outcome(&args, b"to the end").await?;
    check!(
        status == 7 && out == "to the end" && err.starts_with("error\n"),
        "status {status}, {out:?}, {err:?}"
    );
    let args = ["exec", &pod, "-c", "web", "--", "no-such-command"];
    let (status, _, err) = cluster.kubectl.outcome(&args, b"").await?;
    let words = "\"no-such-command\": executable file not found in $PATH";
    check!(
        status != 0 && err.contains(words),
        "status {status}, {err:?}"
    );
    Ok(())
}

async fn attach_reaches_a_running_container(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let mut attached = cluster
        .kubectl
        .start(&["attach", "-i", &pod, "-c", "echo"])?;
    let (Some(mut stdin), Some(stdout)) = (attached.stdin.take(), attached.stdout.take()) else {
        return Err("kubectl has no streams".into());
    };
    stdin.write_all(b"somebody\n").await?;
    line_with(&mut BufReader::new(stdout), "heard somebody").await?;
    Ok(())
}

async fn cp_is_byte_exact_both_ways(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let dir = std::env::temp_dir().join("kube-cp");
    std::fs::create_dir_all(&dir)?;
    let (there, back) = (dir.join("there"), dir.join("back"));
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2])
        .collect();
    std::fs::write(&there, &bytes)?;
    let remote = format!("{pod}:/tmp/copied");
    for (from, to) in [
        (there.to_string_lossy(), (&remote).into()),
        ((&remote).into(), back.to_string_lossy()),
    ] {
        cluster
            .kubectl
            .run(&["cp", "-c", "web", &from, &to])
            .await?;
    }
    check!(std::fs::read(&back)? == bytes, "the copy differs");
    Ok(())
}

async fn port_forward_reaches_the_web_server(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let target = format!("pod/{pod}");
    let mut forward = cluster.kubectl.start(&["port-forward", &target, ":8080"])?;
    let stdout = forward.stdout.take().ok_or("kubectl has no stdout")?;
    // It has to have a reader as long as it runs: it says more with each connection.
    let mut stdout = BufReader::new(stdout);
    let line = line_with(&mut stdout, "127.0.0.1:").await?;
    let port = line
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let port: u16 = port.ok_or("no port")?.parse()?;
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        let read = timeout(SOON, stream.read_to_string(&mut answer)).await?;
        if let Err(error) = read {
            forward.kill().await?;
            let mut said = String::new();
            let mut stderr = forward.stderr.take().ok_or("kubectl has no stderr")?;
            stderr.read_to_string(&mut said).await?;
            return Err(format!("{error} after {answer:?}; kubectl says {said:?}").into());
        }
        check!(
            answer.starts_with("HTTP/1.") && answer.ends_with("hello from a microVM\n"),
            "the server says {answer:?}"
        );
    }
    Ok(())
}

async fn logs_follow(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let mut logs = cluster
        .kubectl
        .start(&["logs", "-f", "--tail=1", &pod, "-c", "web"])?;
    let mut lines = BufReader::new(logs.stdout.take().ok_or("kubectl has no stdout")?);
    // The probe's own requests are in the log, too.
    line_with(&mut lines, "").await?;
    for marker in ["first-marker", "second-marker"] {
        let get = format!("wget -qO- http://127.0.0.1:8080/{marker}; true");
        cluster.exec(&format!("{pod} -c web"), &get).await?;
        line_with(&mut lines, marker).await?;
    }
    Ok(())
}

async fn debug_sees_its_target(cluster: &Cluster) -> Outcome {
    let pod = web(cluster).await?;
    let image = format!("--image={BUSYBOX}");
    let args = [
        "debug",
        &pod,
        &image,
        "--target=web",
        "-c",
        "looker",
        "--",
        "sh",
        "-c",
        "ps; ls /proc/1/root/site",
    ];
    cluster.kubectl.run(&args).await?;
    cluster
        .until(&format!("pod/{pod}"), "the debugger's end", |pod| {
            container(pod, "looker")["state"]["terminated"]["exitCode"] == 0
        })
        .await?;
    let said = cluster.kubectl.run(&["logs", &pod, "-c", "looker"]).await?;
    check!(
        said.contains("httpd -f") && said.contains("index.html"),
        "the debugger sees {said:?}"
    );
    Ok(())
}
