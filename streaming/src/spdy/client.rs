//! The client's side, as small as the tests and the benchmark need it: one that can also misbehave.
//! The daemon does not use it.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{
    frame::{self, Event, Parser},
    headers::{Headers, Packer, Unpacker},
};

/// A response's head is short.
const MAX_HEAD: usize = 16 * 1024;

/// What a server answered instead of 101, or why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Another status.
    #[error("the server answered {status}: {text}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Head and what came of the body.
        text: String,
    },
    /// No answer.
    #[error("no answer: {0}")]
    Io(#[from] io::Error),
}

/// Sends a request for a URL (`http://address/path`) and takes the server's head: the status, the
/// head, what came behind it, and the connection.
pub async fn request(url: &str, head: &str) -> io::Result<(u16, String, BytesMut, TcpStream)> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let rest = url.strip_prefix("http://");
    let (address, path) = rest
        .and_then(|rest| rest.split_once('/'))
        .ok_or_else(|| bad("no http URL"))?;
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (method, headers) = head.split_once('\n').unwrap_or((head, ""));
    let text = format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    stream.write_all(text.as_bytes()).await?;
    let mut input = BytesMut::new();
    let end = loop {
        let found = input.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(at) = found {
            break at + 4;
        }
        if stream.read_buf(&mut input).await? == 0 || input.len() > MAX_HEAD {
            return Err(bad("the server's answer has no end"));
        }
    };
    let head = String::from_utf8_lossy(&input.split_to(end)).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(|| bad("no status"))?, head, input, stream))
}

/// Upgrades to SPDY/3.1 with one protocol.
pub async fn connect(url: &str, protocol: &str) -> Result<(Reader, Writer), UpgradeError> {
    let head = format!(
        "POST\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
         X-Stream-Protocol-Version: {protocol}\r\n"
    );
    let (status, head, input, stream) = request(url, &head).await?;
    if status != 101 {
        let text = head + &String::from_utf8_lossy(&input);
        return Err(UpgradeError::Refused { status, text });
    }
    let (read, write) = stream.into_split();
    let reader = Reader {
        read,
        parser: Parser::default(),
        unpacker: Unpacker::default(),
        input,
    };
    let packer = Packer::new().map_err(io::Error::other)?;
    Ok((
        reader,
        Writer {
            write,
            packer,
            next: 1,
        },
    ))
}

/// What the server says.
#[derive(Debug)]
pub struct Reader {
    read: OwnedReadHalf,
    parser: Parser,
    unpacker: Unpacker,
    input: BytesMut,
}

impl Reader {
    /// The next event; `None` when the server has closed. Header blocks are checked.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            let event = self
                .parser
                .next(&mut self.input)
                .map_err(io::Error::other)?;
            if let Some(event) = event {
                if let Event::SynReply { headers, .. } = &event {
                    let _: Headers = self.unpacker.unpack(headers).map_err(io::Error::other)?;
                }
                return Ok(Some(event));
            }
            self.input.reserve(256 * 1024);
            if self.read.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// What the client says.
#[derive(Debug)]
pub struct Writer {
    write: OwnedWriteHalf,
    packer: Packer,
    next: u32,
}

impl Writer {
    /// Opens a stream without waiting for the reply; its number.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> io::Result<u32> {
        let id = self.next;
        self.next += 2;
        let block = self.packer.pack(headers).map_err(io::Error::other)?;
        self.raw(&frame::syn_stream(id, false, &block)).await?;
        Ok(id)
    }

    /// Sends data (less than 16 MiB), and the stream's end if `fin`.
    pub async fn send(&mut self, id: u32, data: &[u8], fin: bool) -> io::Result<()> {
        let header = frame::data_header(id, fin, data.len());
        let mut both = bytes::Buf::chain(header.as_slice(), data);
        self.write.write_all_buf(&mut both).await
    }

    /// Sends any bytes.
    pub async fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(bytes).await
    }
}

/// What a remote command has said to its end.
#[derive(Debug, Default)]
pub struct Ended {
    /// Its output.
    pub stdout: Vec<u8>,
    /// Its errors.
    pub stderr: Vec<u8>,
    /// The last word.
    pub status: Vec<u8>,
}

/// The streams of a remote command (`v4.channel.k8s.io`).
#[derive(Debug)]
pub struct Command {
    /// The server's side.
    pub reader: Reader,
    /// The client's side.
    pub writer: Writer,
    /// Number of the error stream.
    pub error: u32,
    /// Of standard input.
    pub stdin: Option<u32>,
    /// Of standard output.
    pub stdout: Option<u32>,
    /// Of standard error.
    pub stderr: Option<u32>,
}

/// A piece of what a command says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Output.
    Stdout(Bytes),
    /// Errors.
    Stderr(Bytes),
    /// The last word.
    Status(Bytes),
}

impl Command {
    /// Connects and opens the streams `which` names of "stdin", "stdout", "stderr".
    pub async fn start(url: &str, which: &[&str]) -> Result<Self, UpgradeError> {
        let (reader, mut writer) = connect(url, "v4.channel.k8s.io").await?;
        let error = writer.open(&[("streamtype", "error")]).await?;
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        for name in which {
            let id = writer.open(&[("streamtype", name)]).await?;
            match *name {
                "stdin" => stdin = Some(id),
                "stdout" => stdout = Some(id),
                _ => stderr = Some(id),
            }
        }
        Ok(Self {
            reader,
            writer,
            error,
            stdin,
            stdout,
            stderr,
        })
    }

    /// The next piece; `None` when stdout, stderr and error have ended.
    pub async fn collect(&mut self) -> io::Result<Ended> {
        let mut ended = Ended::default();
        let said = &mut |said: Message| match said {
            Message::Stdout(data) => ended.stdout.extend_from_slice(&data),
            Message::Stderr(data) => ended.stderr.extend_from_slice(&data),
            Message::Status(data) => ended.status.extend_from_slice(&data),
        };
        follow(
            &mut self.reader,
            [self.stdout, self.stderr, Some(self.error)],
            said,
        )
        .await?;
        Ok(ended)
    }
}

/// Reads until the streams (stdout, stderr, error) have ended, handing over what they say.
pub async fn follow(
    reader: &mut Reader,
    [mut stdout, mut stderr, mut error]: [Option<u32>; 3],
    said: &mut (dyn FnMut(Message) + Send),
) -> io::Result<()> {
    while stdout.is_some() || stderr.is_some() || error.is_some() {
        let event = reader.next().await?;
        let (id, data, fin) = match event {
            Some(Event::Data { id, data, fin }) => (Some(id), data, fin),
            Some(_) => continue,
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let (stream, kind): (_, fn(Bytes) -> Message) = if id == stdout {
            (&mut stdout, Message::Stdout)
        } else if id == stderr {
            (&mut stderr, Message::Stderr)
        } else if id == error {
            (&mut error, Message::Status)
        } else {
            continue;
        };
        if fin {
            *stream = None;
        }
        said(kind(data));
    }
    Ok(())
}
