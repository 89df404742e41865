//! The guest's sessions: commands, and the output of containers.

use std::io;

use bulkhead_proto::{
    agent::{
        ExecRequest, OutputRequest, SessionRequest, SessionResponse, Stream, session_request::What,
    },
    session::{self, ACKNOWLEDGEMENT, Frame, MAGIC, Output},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tonic::{Code, Status};

use super::{Guest, Process};

/// Whether a connection begins as a session; nothing of it is taken.
pub async fn is_one(stream: &UnixStream) -> bool {
    let mut first = [0; MAGIC.len()];
    loop {
        if stream.readable().await.is_err() {
            return false;
        }
        let flags = rustix::net::RecvFlags::PEEK;
        let peek = || Ok(rustix::net::recv(stream, &mut first, flags)?.1);
        match stream.try_io(Interest::READABLE, peek) {
            Ok(n) if n == first.len() => return first == MAGIC,
            // The beginning alone, or nothing after all.
            Ok(n) if n > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return false,
        }
    }
}

impl Guest {
    pub async fn session(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic).await?;
        let mut body = vec![0; usize::try_from(stream.read_u32().await?).unwrap()];
        stream.read_exact(&mut body).await?;
        let request: SessionRequest = session::message(&body).unwrap();
        let (name, what) = match request.what.unwrap() {
            What::Exec(request) => ("exec", Ok(request)),
            What::Output(request) => ("output", Err(request)),
            other => panic!("not in the fake: {other:?}"),
        };
        let called = self.call(name);
        answer(&mut stream, &called).await?;
        if called.is_err() {
            return Ok(());
        }
        match what {
            Ok(request) => self.command(stream, request).await,
            Err(request) => self.output(stream, request).await,
        }
    }

    async fn command(&self, stream: UnixStream, request: ExecRequest) -> io::Result<()> {
        let key = (request.container_id, request.exec_id);
        self.with(|state| {
            let process = Process {
                args: request.args,
                ..Default::default()
            };
            state.processes.insert(key.clone(), process);
            state.run(&key.0, &key.1);
        });
        let (mut read, mut write) = stream.into_split();
        let mut gone = [0];
        tokio::select! {
            _ = read.read(&mut gone) => {}
            _ = self.tell(&key, 0, &mut write) => {}
        }
        self.with(|state| state.processes.remove(&key));
        Ok(())
    }

    async fn output(&self, stream: UnixStream, request: OutputRequest) -> io::Result<()> {
        let process = request.process.unwrap();
        let key = (process.container_id, process.exec_id);
        let (read, mut write) = stream.into_split();
        tokio::select! {
            told = self.tell(&key, request.stdout_offset, &mut write) => told,
            gone = self.acknowledge(&key, read) => gone,
        }
    }

    async fn acknowledge(&self, key: &(String, String), mut read: OwnedReadHalf) -> io::Result<()> {
        let mut word = [0; ACKNOWLEDGEMENT];
        loop {
            read.read_exact(&mut word).await?;
            self.with(|state| {
                if let Some(process) = state.processes.get_mut(key) {
                    let (stdout, _) = session::acknowledged(word);
                    process.acknowledged = process.acknowledged.max(stdout);
                }
            });
        }
    }

    async fn tell(
        &self,
        key: &(String, String),
        mut offset: u64,
        write: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let found = self.0.state.lock().unwrap().processes.get(key).cloned();
            let Some(process) = found else { return Ok(()) };
            assert!(
                offset >= process.acknowledged,
                "asked for what was acknowledged"
            );
            let rest = &process.stdout[usize::try_from(offset).unwrap()..];
            let data = &rest[..rest.len().min(50_000)];
            if !data.is_empty() {
                let output = Output {
                    stream: Stream::Stdout,
                    length: data.len(),
                    offset,
                    time_unix_ns: 1,
                };
                write.write_all(&Frame::Output(output).header()).await?;
                write.write_all(data).await?;
                offset += data.len() as u64;
            } else if let Some(exit) = process.exit {
                return write.write_all(&session::exit(&exit)).await;
            } else {
                changed.changed().await.unwrap();
            }
        }
    }
}

async fn answer(stream: &mut UnixStream, called: &Result<(), Status>) -> io::Result<()> {
    let (code, message) = match called {
        Ok(()) => (Code::Ok, ""),
        Err(status) => (status.code(), status.message()),
    };
    let response = SessionResponse {
        code: i32::from(code).unsigned_abs(),
        message: message.to_owned(),
    };
    stream.write_all(&session::answer(&response)).await
}
