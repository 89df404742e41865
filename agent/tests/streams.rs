//! Standard streams through the agent's service: everything once, in order, whatever the size.

// Tests fail by panicking, and say what they measured or why they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::indexing_slicing
)]

#[allow(dead_code)] // each test program uses a part
#[macro_use]
mod common;

use bulkhead_proto::agent::session_request::What;
use bulkhead_proto::agent::*;
use bulkhead_proto::session::{Frame, acknowledgement};
use common::{DEADLINE, collect, exec_request, frame, numbers, process, request, text};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tonic::Code;

#[tokio::test]
async fn large_output_is_complete_and_in_order() {
    let mut agent = agent!();
    // More than every buffer on the way, and the exit right behind the last byte.
    agent.create("big", "seq 1 500000; seq 1 50000 >&2").await;
    agent.begin("big").await.unwrap();
    let (stdout, stderr, exit) = agent.collect("big").await;
    assert!(stdout == numbers(500_000, "\n"), "{} bytes", stdout.len());
    assert!(stderr == numbers(50_000, "\n"), "{} bytes", stderr.len());
    assert_eq!(exit.code, 0);
    agent.delete("big").await;
}

#[tokio::test]
async fn output_continues_where_the_last_reader_stopped() {
    let mut agent = agent!();
    agent.create("o", "seq 1 10000; sleep 1000").await;
    agent.begin("o").await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut session = agent.output("o", seen.len() as u64).await.unwrap();
        let (frame, data) = frame(&mut session).await;
        let Frame::Output(output) = frame else {
            panic!("{frame:?} where output was to come");
        };
        assert_eq!(output.offset, seen.len() as u64);
        assert!(output.time_unix_ns > 0);
        // Half of it is lost on the way, as far as the next reader knows.
        seen.extend_from_slice(&data[..data.len().div_ceil(2)]);
    }
    let expected = numbers(10_000, "\n");
    assert!(!seen.is_empty() && expected.as_bytes().starts_with(&seen));
    let beyond = agent.output("o", 1 << 40).await.unwrap_err();
    assert_eq!(beyond.code(), Code::OutOfRange);
    // What is safe elsewhere is forgotten here.
    let mut session = agent.output("o", 0).await.unwrap();
    let mut taken = 0;
    while taken < expected.len() {
        taken += frame(&mut session).await.1.len();
    }
    let word = acknowledgement(taken as u64, 0);
    session.write_all(&word).await.unwrap();
    drop(session);
    let refused = async {
        loop {
            // The session that said so has ended, or will.
            if let Err(status) = agent.output("o", 0).await {
                return status.code();
            }
        }
    };
    let code = timeout(DEADLINE, refused).await.unwrap();
    assert_eq!(code, Code::OutOfRange);
    agent.delete("o").await;
}

#[tokio::test]
async fn an_execs_output_belongs_to_its_session() {
    let mut agent = agent!();
    agent.create("m", "sleep 1000").await;
    agent.begin("m").await.unwrap();
    // More than its pipes hold, on both at once.
    let script = "seq 1 200000 & seq 1 100000 >&2; wait; exit 7";
    let (stdout, stderr, exit) = agent.exec_sh("m", "e", script).await;
    assert!(stdout == numbers(200_000, "\n"), "{} bytes", stdout.len());
    assert!(stderr == numbers(100_000, "\n"), "{} bytes", stderr.len());
    assert_eq!(exit.code, 7);
    // The session's end is the process's.
    let session = agent
        .exec(exec_request("m", "long", &["sleep", "998"]))
        .await
        .unwrap();
    let other = OutputRequest {
        process: Some(process("m", "long")),
        ..OutputRequest::default()
    };
    let other = agent.session(What::Output(other)).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);
    drop(session);
    let script = "while ps | grep -q '[s]leep 998'; do :; done; echo gone";
    let (stdout, ..) = agent.exec_sh("m", "look", script).await;
    assert_eq!(stdout, "gone\n");
    agent.delete("m").await;
}

#[tokio::test]
async fn a_full_buffer_stops_the_process_and_loses_nothing() {
    let mut agent = agent!();
    agent
        .create("full", "head -c 20m /dev/zero; echo end")
        .await;
    agent.begin("full").await.unwrap();
    // Nobody reads: the process cannot get further than the buffers.
    let list = agent
        .client
        .list_containers(ListContainersRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(list.containers[0].phase(), Phase::Running);
    let (stdout, _, exit) = agent.collect_bytes("full").await;
    assert_eq!((stdout.len(), exit.code), ((20 << 20) + 4, 0));
    assert!(stdout.ends_with(b"end\n"));
    agent.delete("full").await;
}

#[tokio::test]
async fn a_grandchild_holding_the_pipe_does_not_keep_the_stream_open() {
    let mut agent = agent!();
    agent.create("g", "sleep 1000").await;
    agent.begin("g").await.unwrap();
    let (stdout, _, exit) = agent.exec_sh("g", "d", "sleep 999 & echo started").await;
    assert_eq!((stdout.as_str(), exit.code), ("started\n", 0));
    agent.delete("g").await;
}

#[tokio::test]
async fn input_arrives_complete_and_half_close_is_seen() {
    let mut agent = agent!();
    let mut wanted = request("i", &["sh", "-c", "md5sum; echo done"]);
    wanted.stdin = true;
    wanted.stdin_once = true;
    agent.create_with(wanted).await.unwrap();
    agent.begin("i").await.unwrap();
    let block = vec![b'x'; 100 * 64 * 1024];
    agent.input("i", &block).await.unwrap();
    let (stdout, ..) = agent.collect("i").await;
    // md5 of 6,553,600 times "x".
    assert_eq!(stdout, "8776cd07ad19a9b264732fd6c5734d3c  -\ndone\n");
    let closed = agent.input("i", b"y").await.unwrap_err();
    assert_eq!(closed.code(), Code::FailedPrecondition);
    agent.delete("i").await;
}

#[tokio::test]
async fn input_stays_open_between_sessions_unless_stdin_once() {
    let mut agent = agent!();
    let mut wanted = request("s", &["head", "-n", "2"]);
    wanted.stdin = true;
    agent.create_with(wanted.clone()).await.unwrap();
    agent.begin("s").await.unwrap();
    for text in ["one\n", "two\n"] {
        agent.input("s", text.as_bytes()).await.unwrap();
    }
    assert_eq!(agent.collect("s").await.0, "one\ntwo\n");
    agent.delete("s").await;

    let mut wanted = request("once", &["cat"]);
    wanted.stdin = true;
    wanted.stdin_once = true;
    agent.create_with(wanted).await.unwrap();
    agent.begin("once").await.unwrap();
    agent.input("once", b"only\n").await.unwrap();
    assert_eq!(agent.collect("once").await.0, "only\n");
    agent.delete("once").await;
}

#[tokio::test]
async fn terminals_are_terminals_and_have_a_size() {
    let mut agent = agent!();
    let mut wanted = request(
        "t",
        &["sh", "-c", "tty; read line; echo got $line; stty size"],
    );
    wanted.stdin = true;
    wanted.tty = true;
    agent.create_with(wanted).await.unwrap();
    let resize = ResizeTerminalRequest {
        process: Some(process("t", "")),
        columns: 100,
        rows: 40,
    };
    agent.client.resize_terminal(resize).await.unwrap();
    agent.begin("t").await.unwrap();
    agent.input("t", b"hello\n").await.unwrap();
    let (stdout, stderr, exit) = agent.collect("t").await;
    assert!(
        stdout.starts_with("/dev/pts/0\r\n") || stdout.contains("/dev/"),
        "{stdout}"
    );
    assert!(stdout.contains("got hello\r\n40 100\r\n"), "{stdout}");
    assert_eq!((stderr.as_str(), exit.code), ("", 0));
    agent.delete("t").await;

    agent.create("e", "sleep 1000").await;
    agent.begin("e").await.unwrap();
    let mut wanted = exec_request("e", "sh", &["sh", "-c", "tty; stty size; echo $TERM"]);
    wanted.tty = true;
    let session = agent.exec(wanted).await.unwrap();
    let (stdout, ..) = text(collect(session, false).await);
    assert!(
        stdout.starts_with("/dev/pts/") && stdout.ends_with("xterm\r\n"),
        "{stdout}"
    );
    let resize = ResizeTerminalRequest {
        process: Some(process("e", "")),
        columns: 1,
        rows: 1,
    };
    let refused = agent.client.resize_terminal(resize).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    agent.delete("e").await;
}
