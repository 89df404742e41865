//! Exec, attach and port-forward: by the clients operators have, and by one that also misbehaves.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use bulkhead_proto::cri::{AttachRequest, ExecRequest, PortForwardRequest};
use bulkhead_streaming::spdy::{
    client::{self, Command, Ended, Message, Reader, Writer},
    frame::Event,
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::{BUSYBOX, crictl::Crictl, logs};
use crate::{
    Failure, Outcome, check,
    cri::{Cri, PATIENCE, pause, pod, script},
    suite::{Context, Test},
    test,
    waiting::{Progress, while_moving},
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("streaming", crictl_does_everything_by_both_transports).with_crictl(),
        test!("streaming", streams_are_whole_end_and_leave_nothing),
        test!("streaming", attached_clients_see_everything_or_are_let_go),
    ]
}

impl Cri {
    async fn exec_url(&self, id: &str, command: &[&str], tty: bool) -> Result<String, Status> {
        let request = ExecRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        Ok(self.runtime.clone().exec(request).await?.into_inner().url)
    }

    async fn attach_url(&self, id: &str, stdin: bool) -> Result<String, Status> {
        let request = AttachRequest {
            container_id: id.to_owned(),
            stdin,
            tty: false,
            stdout: true,
            stderr: true,
        };
        Ok(self.runtime.clone().attach(request).await?.into_inner().url)
    }

    async fn forward_url(&self, pod: &str) -> Result<String, Status> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: Vec::new(),
        };
        let answer = self.runtime.clone().port_forward(request).await?;
        Ok(answer.into_inner().url)
    }
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn bytes(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

async fn crictl_does_everything_by_both_transports(context: &mut Context) -> Outcome {
    let crictl = Crictl::new(context)?;
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("crictl-streams");
    let id = cri.run_pod(config.clone()).await?;
    let text = "mkdir /tmp/www; echo served > /tmp/www/page; httpd -p 127.0.0.1:8080 -h /tmp/www; \
                while read x; do echo got:$x; done; sleep 1000";
    let mut main = script("main", BUSYBOX, text);
    main.stdin = true;
    let made = cri.run(&id, &config, main).await?;
    let data = bytes(300_000);
    let url = cri.forward_url(&id).await?;
    let (mut reader, mut writer) = client::connect(&url, "portforward.k8s.io").await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = soon("the page", page(&mut reader, &mut writer, "8080")).await?;
        if page.ends_with("served\n") {
            break;
        }
        // Not listening yet.
        check!(page.contains("error forwarding port 8080"), "{page:?}");
        pause(deadline, "the server in the pod").await?;
    }
    for transport in ["spdy", "websocket"] {
        let with = ["-r", transport];
        let mut cat = crictl
            .program(&["exec", "-i"])
            .args(with)
            .args([&made, "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = cat.stdin.take().ok_or("no input")?;
        let content = data.clone();
        let writing = std::thread::spawn(move || stdin.write_all(&content));
        let done = cat.wait_with_output()?;
        check!(writing.join().is_ok_and(|done| done.is_ok()), "writing");
        check!(
            done.status.success() && done.stdout == data,
            "{transport}: {} bytes of {}",
            done.stdout.len(),
            data.len()
        );
        let failed = crictl
            .program(&["exec"])
            .args(with)
            .args([&made, "sh", "-c", "echo to >&2; exit 7"])
            .output()?;
        let complaint = String::from_utf8_lossy(&failed.stderr).into_owned();
        check!(
            !failed.status.success() && complaint.contains("to\n") && complaint.contains('7'),
            "{transport}: {:?} {complaint}",
            failed.status
        );

        let attach = crictl
            .program(&["attach", "-i"])
            .args(with)
            .arg(&made)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut attach = Killed(attach);
        let mut stdin = attach.0.stdin.take().ok_or("no input")?;
        stdin.write_all(format!("by-{transport}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(attach.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        check!(line == format!("got:by-{transport}\n"), "{line:?}");
        drop((attach, stdin));

        let forward = crictl
            .program(&["port-forward"])
            .args(with)
            .args([&id, "0:8080"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut forward = Killed(forward);
        let mut line = String::new();
        // Kept open: crictl ends when it cannot say what it handles.
        let mut output = BufReader::new(forward.0.stdout.take().ok_or("no output")?);
        output.read_line(&mut line)?;
        // "Forwarding from 127.0.0.1:PORT -> 8080"
        let address = line
            .split_whitespace()
            .find(|word| word.starts_with("127."));
        let address = address.ok_or_else(|| format!("{transport}: {line:?}"))?;
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            check!(answer.ends_with("served\n"), "{transport}: {answer:?}");
        }
    }
    Ok(cri.remove_pod(&id).await?)
}

/// What a pod's port answers to a request, or the error it gives.
async fn page(reader: &mut Reader, writer: &mut Writer, port: &str) -> Result<String, Failure> {
    let with = |kind| [("streamtype", kind), ("port", port), ("requestid", "page")];
    writer.open(&with("error")).await?;
    let data = writer.open(&with("data")).await?;
    let request = b"GET /page HTTP/1.0\r\n\r\n";
    writer.send(data, request, false).await?;
    let (mut text, mut open) = (Vec::new(), 2);
    while open > 0 {
        match reader.next().await? {
            Some(Event::Data {
                data: said,
                fin,
                id,
            }) => {
                text.extend_from_slice(&said);
                open -= i32::from(fin);
                if fin && id == data {
                    writer.send(data, b"", true).await?;
                }
            }
            Some(_) => {}
            None => return Err("the connection ended".into()),
        }
    }
    Ok(String::from_utf8(text)?)
}

/// Waits within the tests' patience.
async fn soon<T, E>(what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    match timeout(PATIENCE, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(format!("waited too long for {what}").into()),
    }
}

/// All a command says, waited for as long as it says something.
async fn collect(what: &str, command: &mut Command) -> Result<Ended, Failure> {
    let (mut ended, moved) = (Ended::default(), AtomicU64::new(0));
    let mut said = |said: Message| {
        let (to, data) = match said {
            Message::Stdout(data) => (&mut ended.stdout, data),
            Message::Stderr(data) => (&mut ended.stderr, data),
            Message::Status(data) => (&mut ended.status, data),
        };
        to.extend_from_slice(&data);
        moved.fetch_add(data.len() as u64, Ordering::Relaxed);
    };
    let streams = [command.stdout, command.stderr, Some(command.error)];
    let all = client::follow(&mut command.reader, streams, &mut said);
    while_moving(what, &moved, all).await?;
    Ok(ended)
}

async fn streams_are_whole_end_and_leave_nothing(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("streams");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    whole(cri, &made).await?;
    terminal(cri, &made).await?;
    left(cri, &made).await?;
    closed_port(cri, &id).await?;
    // A URL of a container that is dead when the URL is used, and one of a pod that is.
    let late = cri.exec_url(&made, &["true"], false).await?;
    let port = cri.forward_url(&id).await?;
    cri.stop(&made, 0).await?;
    let dead = cri.exec_url(&made, &["true"], false).await;
    check!(
        dead.as_ref().err().map(Status::code) == Some(Code::FailedPrecondition),
        "{dead:?}"
    );
    let mut command = Command::start(&late, &["stdin", "stdout", "stderr"]).await?;
    let ended = collect("an error", &mut command).await?;
    let status = String::from_utf8_lossy(&ended.status).into_owned();
    check!(status.contains("InternalError"), "{status}");
    cri.stop_pod(&id).await?;
    let (mut reader, mut writer) = client::connect(&port, "portforward.k8s.io").await?;
    let text = soon("an error", refused(&mut reader, &mut writer, "80")).await?;
    check!(text.contains("error forwarding port 80"), "{text}");
    Ok(cri.remove_pod(&id).await?)
}

/// Some megabytes out and in; the gigabyte is in `runtime/src/streaming/tests/bulk.rs`.
async fn whole(cri: &Cri, made: &str) -> Outcome {
    const SIZE: usize = 4 << 20;
    let url = cri.exec_url(made, &["seq", "1", "400000"], false).await?;
    let mut command = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let began = Instant::now();
    let ended = collect("the numbers", &mut command).await?;
    println!(
        "numbers: {} bytes in {:?}",
        ended.stdout.len(),
        began.elapsed()
    );
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    check!(
        ended.stdout == expected.as_bytes(),
        "{} bytes of {}",
        ended.stdout.len(),
        expected.len()
    );
    let url = cri.exec_url(made, &["sha256sum"], false).await?;
    let mut command = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let data = bytes(SIZE);
    let began = Instant::now();
    let stdin = command.stdin.ok_or("no input")?;
    for (number, part) in data.chunks(60_000).enumerate() {
        let last = (number + 1) * 60_000 >= data.len();
        soon("input to be taken", command.writer.send(stdin, part, last)).await?;
    }
    let ended = collect("the sum", &mut command).await?;
    println!("sum: {} bytes in {:?}", data.len(), began.elapsed());
    let sum = {
        use sha2::Digest as _;
        hex::encode(sha2::Sha256::digest(&data))
    };
    let got = String::from_utf8_lossy(&ended.stdout).into_owned();
    check!(got.starts_with(&sum), "{got} {sum}");
    // Input that nobody takes does not hold the end up.
    let url = cri.exec_url(made, &["true"], false).await?;
    let mut command = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let stdin = command.stdin.ok_or("no input")?;
    for part in data.chunks(60_000).take(40) {
        if command.writer.send(stdin, part, false).await.is_err() {
            break;
        }
    }
    let ended = collect("the end of true", &mut command).await?;
    let status = String::from_utf8_lossy(&ended.status).into_owned();
    check!(status.contains("Success"), "{status}");
    // A background process keeps the pipes: the end is that of the command.
    let url = cri
        .exec_url(made, &["sh", "-c", "sleep 999 & echo done; exit 3"], false)
        .await?;
    let mut command = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let ended = collect("the end of a shell", &mut command).await?;
    let status = String::from_utf8_lossy(&ended.status).into_owned();
    check!(ended.stdout == b"done\n", "{ended:?}");
    check!(status.contains(r#""message":"3""#), "{status}");
    let url = cri.exec_url(made, &["no-such-program"], false).await?;
    let mut command = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let ended = collect("an error", &mut command).await?;
    let status = String::from_utf8_lossy(&ended.status).into_owned();
    check!(
        status.contains("InternalError") && status.contains("no-such-program"),
        "{status}"
    );
    Ok(())
}

async fn terminal(cri: &Cri, made: &str) -> Outcome {
    let text = "while [ \"$(stty size)\" != '40 100' ]; do usleep 20000; done; tty; read line; \
                echo \"read $line\"";
    let url = cri.exec_url(made, &["sh", "-c", text], true).await?;
    let mut command = Command::start(&url, &["stdin", "stdout"]).await?;
    let resize = command.writer.open(&[("streamtype", "resize")]).await?;
    for part in [
        &b"{\"Width\":10,\"Height\":10}{\"Width\":1"[..],
        b"00,\"Height\":40}",
    ] {
        command.writer.send(resize, part, false).await?;
    }
    let stdin = command.stdin.ok_or("no input")?;
    command.writer.send(stdin, b"typed\n", false).await?;
    let ended = collect("the terminal", &mut command).await?;
    let got = String::from_utf8_lossy(&ended.stdout).into_owned();
    check!(
        got.contains("/dev/pts/") && got.contains("read typed"),
        "{got:?}"
    );
    Ok(())
}

/// A client that leaves takes its command with it.
async fn left(cri: &Cri, made: &str) -> Outcome {
    let url = cri.exec_url(made, &["sleep", "4242"], false).await?;
    let command = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let deadline = Instant::now() + PATIENCE;
    let count = async || -> Result<bool, Failure> {
        let found = cri.shell(made, "ps | grep '[s]leep 4242' | wc -l");
        Ok(found.await?.trim() != "0")
    };
    while !count().await? {
        pause(deadline, "the command to run").await?;
    }
    drop(command);
    while count().await? {
        pause(deadline, "the command to be ended").await?;
    }
    Ok(())
}

/// What the error stream of a pair says; the data stream must end with nothing.
async fn refused(reader: &mut Reader, writer: &mut Writer, port: &str) -> Result<String, Failure> {
    let with = |kind| [("streamtype", kind), ("port", port), ("requestid", port)];
    let error = writer.open(&with("error")).await?;
    let data = writer.open(&with("data")).await?;
    let mut text = Vec::new();
    let mut open = 2;
    while open > 0 {
        match reader.next().await? {
            Some(Event::Data {
                id,
                data: said,
                fin,
            }) => {
                check!(id != data || said.is_empty(), "data from a closed port");
                if id == error {
                    text.extend_from_slice(&said);
                }
                open -= i32::from(fin);
            }
            Some(_) => {}
            None => return Err("the connection ended".into()),
        }
    }
    Ok(String::from_utf8(text)?)
}

async fn closed_port(cri: &Cri, id: &str) -> Outcome {
    let url = cri.forward_url(id).await?;
    let (mut reader, mut writer) = client::connect(&url, "portforward.k8s.io").await?;
    for port in ["81", "65535"] {
        let text = soon("an error", refused(&mut reader, &mut writer, port)).await?;
        check!(
            text.contains(port) && text.contains("refused"),
            "port {port}: {text}"
        );
    }
    let again = client::connect(&url, "portforward.k8s.io").await;
    check!(
        matches!(
            again,
            Err(client::UpgradeError::Refused { status: 404, .. })
        ),
        "a URL used twice"
    );
    Ok(())
}

async fn attached_clients_see_everything_or_are_let_go(context: &mut Context) -> Outcome {
    let (config, dir) = logs::logging_pod(context, "attach");
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let id = cri.run_pod(config.clone()).await?;
    // The input of a container that takes it once: its end is the container's.
    let mut main = logs::logged(script("once", BUSYBOX, "cat; echo end >&2"), "once.log");
    (main.stdin, main.stdin_once) = (true, true);
    let made = cri.run(&id, &config, main).await?;
    let url = cri.attach_url(&made, true).await?;
    let mut attached = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let stdin = attached.stdin.ok_or("no input")?;
    let lines: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
    let Command {
        ref mut reader,
        ref mut writer,
        ..
    } = attached;
    let mut got = Vec::new();
    let streams = [attached.stdout, attached.stderr, Some(attached.error)];
    let moved = AtomicU64::new(0);
    let mut said = |said: Message| {
        if let Message::Stdout(data) = said {
            got.extend_from_slice(&data);
            moved.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    };
    let write = async {
        let count = lines.len().div_ceil(30_000);
        for (number, part) in lines.as_bytes().chunks(30_000).enumerate() {
            writer.send(stdin, part, number + 1 == count).await?;
            moved.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        Ok::<_, std::io::Error>(())
    };
    let read = client::follow(reader, streams, &mut said);
    while_moving("the copy", &moved, async { tokio::try_join!(write, read) }).await?;
    check!(
        got == lines.as_bytes(),
        "{} bytes of {}",
        got.len(),
        lines.len()
    );
    check!(cri.exited(&made).await?.exit_code == 0, "cat");
    check!(logs::read(&dir.join("once.log"), "stdout")? == got, "log");

    // A client that does not read: the log is complete all the same.
    let text = "read go; seq 1 3000000";
    let mut main = logs::logged(script("much", BUSYBOX, text), "much.log");
    main.stdin = true;
    let made = cri.run(&id, &config, main).await?;
    let url = cri.attach_url(&made, true).await?;
    let mut deaf = Command::start(&url, &["stdin", "stdout", "stderr"]).await?;
    let stdin = deaf.stdin.ok_or("no input")?;
    deaf.writer.send(stdin, b"go\n", false).await?;
    let path = dir.join("much.log");
    let mut progress = Progress::default();
    loop {
        let (length, ended) = length_and_end(&path, b" 3000000\n")?;
        if ended {
            break;
        }
        let what = format!("the whole log, of which {length} bytes are there");
        progress.pause(length, &what).await?;
    }
    check!(cri.exited(&made).await?.exit_code == 0, "seq");
    drop(deaf);
    Ok(cri.remove_pod(&id).await?)
}

/// How long a file is, and whether it ends so. The rest is not read: a log of some hundred megabytes
/// would cost more to look at than to write.
fn length_and_end(path: &Path, end: &[u8]) -> Result<(u64, bool), Failure> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(u64::try_from(end.len())?);
    file.seek(SeekFrom::Start(start))?;
    let mut last = Vec::new();
    file.take(length - start).read_to_end(&mut last)?;
    Ok((length, last == end))
}
