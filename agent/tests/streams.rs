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
mod common;

use bulkhead_proto::agent::*;
use common::{DEADLINE, TestAgent, exec_request, process, request};
use tokio::time::timeout;
use tonic::Code;

macro_rules! agent {
    () => {
        match TestAgent::start().await {
            Some(agent) => agent,
            None => return,
        }
    };
}

fn input(id: &str, exec: &str, data: &[u8], close: bool) -> InputRequest {
    InputRequest {
        process: Some(process(id, exec)),
        data: data.to_vec().into(),
        close,
    }
}

#[tokio::test]
async fn large_output_is_complete_and_in_order() {
    let mut agent = agent!();
    // More than every buffer on the way, and the exit right behind the last byte.
    agent.create("big", "seq 1 500000; seq 1 50000 >&2").await;
    agent.begin("big").await.unwrap();
    let (stdout, stderr, exit) = agent.collect("big", "").await;
    let expected = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
    assert!(stdout == expected(500_000), "{} bytes", stdout.len());
    assert!(stderr == expected(50_000), "{} bytes", stderr.len());
    assert_eq!(exit.code, 0);
    agent.delete("big").await;
}

#[tokio::test]
async fn output_goes_on_where_the_last_reader_stopped() {
    let mut agent = agent!();
    agent.create("o", "seq 1 10000; sleep 1000").await;
    agent.begin("o").await.unwrap();
    let open = |offset: u64| {
        tokio_stream::iter([OutputRequest {
            process: Some(process("o", "")),
            stdout_offset: offset,
            stderr_offset: 0,
        }])
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut chunks = agent
            .client
            .output(open(seen.len() as u64))
            .await
            .unwrap()
            .into_inner();
        let chunk = timeout(DEADLINE, chunks.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if let Some(output_chunk::Event::Data(data)) = chunk.event {
            assert_eq!(data.offset, seen.len() as u64);
            // Half of it is lost on the way, as far as the next reader knows.
            seen.extend_from_slice(&data.data[..data.data.len().div_ceil(2)]);
        }
    }
    let expected = (1..=10_000).map(|n| format!("{n}\n")).collect::<String>();
    assert!(!seen.is_empty() && expected.as_bytes().starts_with(&seen));
    let beyond = agent.client.output(open(1 << 40)).await.unwrap_err();
    assert_eq!(beyond.code(), Code::OutOfRange);
    agent.delete("o").await;
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
    let (stdout, _, exit) = agent.collect_bytes("full", "").await;
    assert_eq!((stdout.len(), exit.code), ((20 << 20) + 4, 0));
    assert!(stdout.ends_with(b"end\n"));
    agent.delete("full").await;
}

#[tokio::test]
async fn a_grandchild_that_keeps_the_pipe_does_not_keep_the_stream() {
    let mut agent = agent!();
    agent.create("g", "sleep 1000").await;
    agent.begin("g").await.unwrap();
    let (stdout, _, exit) = agent.exec_sh("g", "d", "sleep 999 & echo started").await;
    assert_eq!((stdout.as_str(), exit.code), ("started\n", 0));
    agent.delete("g").await;
}

#[tokio::test]
async fn input_arrives_whole_and_half_close_is_seen() {
    let mut agent = agent!();
    let mut wanted = request("i", &["sh", "-c", "md5sum; echo done"]);
    wanted.stdin = true;
    agent.create_with(wanted).await.unwrap();
    agent.begin("i").await.unwrap();
    let block = vec![b'x'; 64 * 1024];
    let mut messages: Vec<_> = (0..100).map(|_| input("i", "", &block, false)).collect();
    messages.push(input("i", "", b"", true));
    let written = timeout(DEADLINE, agent.client.input(tokio_stream::iter(messages))).await;
    assert_eq!(
        written.unwrap().unwrap().into_inner().written,
        100 * 64 * 1024
    );
    let (stdout, ..) = agent.collect("i", "").await;
    // md5 of 6,553,600 times "x".
    assert_eq!(stdout, "8776cd07ad19a9b264732fd6c5734d3c  -\ndone\n");
    let closed = agent
        .client
        .input(tokio_stream::iter([input("i", "", b"y", false)]))
        .await;
    assert_eq!(closed.unwrap_err().code(), Code::FailedPrecondition);
    agent.delete("i").await;
}

#[tokio::test]
async fn input_stays_open_between_streams_unless_asked() {
    let mut agent = agent!();
    let mut wanted = request("s", &["cat"]);
    wanted.stdin = true;
    agent.create_with(wanted.clone()).await.unwrap();
    agent.begin("s").await.unwrap();
    for text in ["one\n", "two\n"] {
        let messages = [input("s", "", text.as_bytes(), false)];
        agent
            .client
            .input(tokio_stream::iter(messages))
            .await
            .unwrap();
    }
    agent
        .client
        .input(tokio_stream::iter([input("s", "", b"", true)]))
        .await
        .unwrap();
    assert_eq!(agent.collect("s", "").await.0, "one\ntwo\n");
    agent.delete("s").await;

    wanted.container_id = "once".into();
    wanted.stdin_once = true;
    agent.create_with(wanted).await.unwrap();
    agent.begin("once").await.unwrap();
    let messages = [input("once", "", b"only\n", false)];
    agent
        .client
        .input(tokio_stream::iter(messages))
        .await
        .unwrap();
    assert_eq!(agent.collect("once", "").await.0, "only\n");
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
    agent
        .client
        .input(tokio_stream::iter([input("t", "", b"hello\n", false)]))
        .await
        .unwrap();
    let (stdout, stderr, exit) = agent.collect("t", "").await;
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
    agent.exec(wanted).await.unwrap();
    let (stdout, ..) = agent.collect("e", "sh").await;
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
