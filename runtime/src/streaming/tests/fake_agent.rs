//! The agent's side of sessions: a few commands and a few ports.

use std::{io, path::Path, sync::Arc};

use bulkhead_proto::{
    agent::{ExecRequest, Exit, SessionRequest, SessionResponse, Stream, session_request::What},
    session::{self, FRAME_HEADER, Frame, MAX_FRAME, Output},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tonic::Code;

use super::bulk;

/// The agent: counts sessions that are open.
pub(super) struct FakeAgent {
    open: Arc<watch::Sender<usize>>,
}

impl FakeAgent {
    pub(super) fn start(vsock: &Path) -> Self {
        std::fs::create_dir_all(vsock.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(vsock).unwrap();
        let open = Arc::new(watch::channel(0).0);
        let count = Arc::clone(&open);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let count = Arc::clone(&count);
                tokio::spawn(async move {
                    count.send_modify(|n| *n += 1);
                    // A client that goes away is what some tests are about.
                    let _ended = serve(stream).await;
                    count.send_modify(|n| *n -= 1);
                });
            }
        });
        Self { open }
    }

    pub(super) async fn wait_idle(&self) {
        let mut open = self.open.subscribe();
        open.wait_for(|n| *n == 0).await.unwrap();
    }

    pub(super) async fn wait_open(&self, wanted: usize) {
        let mut open = self.open.subscribe();
        open.wait_for(|n| *n == wanted).await.unwrap();
    }
}

async fn serve(mut stream: UnixStream) -> io::Result<()> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await?);
    }
    assert_eq!(line, b"CONNECT 1024\n");
    stream.write_all(b"OK 5000\n").await?;
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await?;
    assert_eq!(magic, session::MAGIC);
    let length = usize::try_from(stream.read_u32().await?).unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let request: SessionRequest = session::message(&body).unwrap();
    match request.what.unwrap() {
        What::Exec(request) => exec(stream, request).await,
        What::Forward(to) if to.port == 7 => {
            answer(&mut stream, Code::Ok, "").await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        }
        What::Forward(_) => answer(&mut stream, Code::FailedPrecondition, "refused").await,
        What::Input(_) | What::Output(_) => {
            answer(&mut stream, Code::NotFound, "no such process").await
        }
    }
}

async fn answer(stream: &mut UnixStream, code: Code, message: &str) -> io::Result<()> {
    let response = SessionResponse {
        code: i32::from(code).unsigned_abs(),
        message: message.to_owned(),
    };
    stream.write_all(&session::answer(&response)).await
}

async fn exec(mut stream: UnixStream, request: ExecRequest) -> io::Result<()> {
    let words: Vec<&str> = request.args.iter().map(String::as_str).collect();
    if words == ["missing"] {
        return answer(&mut stream, Code::InvalidArgument, "no such file: missing").await;
    }
    answer(&mut stream, Code::Ok, "").await?;
    let mut code = 0;
    match words.as_slice() {
        ["exit", with] => {
            frame(&mut stream, Stream::Stdout, b"out\n").await?;
            frame(&mut stream, Stream::Stderr, b"err\n").await?;
            code = with.parse().unwrap();
        }
        ["source", blocks] => {
            for number in 0..blocks.parse().unwrap() {
                frame(&mut stream, Stream::Stdout, &bulk::block(number)).await?;
            }
        }
        ["sink"] => {
            let mut check = bulk::Check::default();
            let mut bytes = Vec::with_capacity(MAX_FRAME);
            while stream.read_buf(&mut bytes).await? > 0 {
                check.feed(&bytes);
                bytes.clear();
            }
            frame(
                &mut stream,
                Stream::Stdout,
                check.blocks().to_string().as_bytes(),
            )
            .await?;
        }
        ["cat"] => {
            let mut bytes = vec![0; MAX_FRAME];
            loop {
                let n = stream.read(&mut bytes).await?;
                if n == 0 {
                    break;
                }
                frame(&mut stream, Stream::Stdout, &bytes[..n]).await?;
            }
        }
        // Reads nothing and says nothing, until its session ends.
        ["deaf"] => loop {
            stream.write_all(&Frame::Alive.header()).await?;
            bulkhead_common::back_off(std::time::Duration::from_millis(20)).await;
        },
        // Breaks the protocol.
        ["liar"] => stream.write_all(&[255; FRAME_HEADER]).await?,
        ["dies"] => return Ok(()),
        other => panic!("no such command: {other:?}"),
    }
    let exit = Exit {
        code,
        ..Exit::default()
    };
    stream.write_all(&session::exit(&exit)).await
}

async fn frame(stream: &mut UnixStream, from: Stream, data: &[u8]) -> io::Result<()> {
    let output = Output {
        stream: from,
        length: data.len(),
        offset: 0,
        time_unix_ns: 0,
    };
    stream.write_all(&Frame::Output(output).header()).await?;
    stream.write_all(data).await
}
