//! Clients that do not behave: an answer or an end, bounded memory, and nothing left.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Node, limit};
use bulkhead_streaming::{
    channel::BUDGET,
    spdy::{
        client::{self, Command},
        frame::{self, Event},
    },
};

/// The status of a bare request.
async fn status(url: &str, head: &str) -> u16 {
    client::request(url, head).await.unwrap().0
}

#[tokio::test]
async fn urls_that_are_none_and_half_upgrades_are_refused() {
    let node = Node::start().await;
    limit(async {
        let url = node.exec(&["exit", "0"], false);
        let base = url.rsplit_once("/exec/").unwrap().0.to_owned();
        for path in [
            "/",
            "/exec/",
            "/exec/AAAAAAAAAAAAAAAA",
            "/metrics",
            "/exec/../x",
        ] {
            assert_eq!(
                status(&format!("{base}{path}"), "GET\n").await,
                404,
                "{path}"
            );
        }
        let other = url.replace("/exec/", "/attach/");
        assert_eq!(status(&other, "GET\n").await, 404);
        assert_eq!(status(&url, "DELETE\n").await, 405);
        assert_eq!(
            status(&url, "POST\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n").await,
            400
        );
        let unknown = client::connect(&url, "v9.channel.k8s.io")
            .await
            .unwrap_err();
        let text = unknown.to_string();
        assert!(
            text.contains("403") && text.contains("v4.channel.k8s.io"),
            "{text}"
        );
        // None of that has used it up.
        let mut good = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
        good.collect().await.unwrap();
        drop(good);
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_opens_no_streams_is_let_go() {
    let node = Node::start_with("creation_timeout_secs = 1").await;
    limit(async {
        let (mut reader, mut writer) =
            client::connect(&node.exec(&["deaf"], true), "v4.channel.k8s.io")
                .await
                .unwrap();
        writer.open(&[("streamtype", "error")]).await.unwrap();
        // A reply, and after a second the end.
        while let Ok(Some(_)) = reader.next().await {}
        // Half a pair, and its end.
        let (mut reader, mut writer) = client::connect(&node.forward(), "portforward.k8s.io")
            .await
            .unwrap();
        let half = [("streamtype", "data"), ("port", "7"), ("requestid", "1")];
        let id = writer.open(&half).await.unwrap();
        loop {
            match reader.next().await.unwrap().unwrap() {
                Event::Rst { id: reset, .. } => break assert_eq!(reset, id),
                _ => continue,
            }
        }
        drop((reader, writer));
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn garbage_and_header_bombs_end_their_connection() {
    let node = Node::start().await;
    limit(async {
        let bomb = {
            let mut context = flate2::Compress::new(flate2::Compression::best(), true);
            let mut packed = Vec::with_capacity(1 << 20);
            context
                .compress_vec(&vec![0; 8 << 20], &mut packed, flate2::FlushCompress::Sync)
                .unwrap();
            frame::syn_stream(1, false, &packed[..8000])
        };
        let huge = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff].to_vec();
        let even = frame::syn_stream(2, false, b"");
        for bytes in [vec![0xff; 4096], bomb, huge, even] {
            let (mut reader, mut writer) =
                client::connect(&node.exec(&["deaf"], true), "v4.channel.k8s.io")
                    .await
                    .unwrap();
            writer.raw(&bytes).await.unwrap();
            while let Ok(Some(_)) = reader.next().await {}
        }
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn of_a_thousand_streams_at_once_the_bound_is_served_and_the_rest_refused() {
    let node = Node::start().await;
    limit(async {
        let (mut reader, mut writer) = client::connect(&node.forward(), "portforward.k8s.io")
            .await
            .unwrap();
        let writing = tokio::spawn(async move {
            for pair in 0..500 {
                let request = pair.to_string();
                for kind in ["error", "data"] {
                    let headers = [("streamtype", kind), ("port", "7"), ("requestid", &request)];
                    writer.open(&headers).await.unwrap();
                }
            }
            writer
        });
        let (mut taken, mut refused) = (0, 0);
        while taken + refused < 1000 {
            match reader.next().await.unwrap().unwrap() {
                Event::SynReply { .. } => taken += 1,
                Event::Rst { status: 3, .. } => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((taken, refused), (512, 488));
        let writer = writing.await.unwrap();
        node.guest.wait_open(256).await;
        // They end with their client.
        drop((reader, writer));
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_command_up_and_not_the_memory() {
    let node = Node::start().await;
    limit(async {
        // More than every buffer on the way holds.
        let url = node.exec(&["source", "4096"], false);
        let mut slow = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
        node.guest.wait_open(1).await;
        // Another is not held up by it.
        let url = node.exec(&["exit", "0"], false);
        let mut quick = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
        quick.collect().await.unwrap();
        drop(quick);
        // The first is still there, with all its output.
        let ended = slow.collect().await.unwrap();
        assert_eq!(ended.stdout.len(), 4096 * super::bulk::BLOCK);
        drop(slow);
        node.end().await;
    })
    .await;
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // a reader that is slow, not a wait for anything
async fn a_client_that_reads_late_gets_the_end() {
    let node = Node::start().await;
    limit(async {
        // Less than the buffers on the way hold: everything is written long before it is read.
        let blocks = (1 << 20) / super::bulk::BLOCK;
        let url = node.exec(&["source", &blocks.to_string()], false);
        let mut late = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
        node.guest.wait_idle().await;
        // Longer than a client has that has read everything. As kubelets do, it looks meanwhile
        // whether the other end is there: if that is closed, the answer costs it what it has not
        // read.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            late.writer.raw(&frame::ping(1)).await.unwrap();
        }
        let ended = late.collect().await.unwrap();
        assert_eq!(ended.stdout.len(), blocks * super::bulk::BLOCK);
        assert!(String::from_utf8_lossy(&ended.status).contains("Success"));
        drop(late);
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_command_even_if_nothing_is_read() {
    let node = Node::start().await;
    limit(async {
        // With so much waiting, nothing more is read from the client, but its end is behind it.
        for bytes in [0, BUDGET + 512 * 1024] {
            let url = node.exec(&["deaf"], true);
            let mut command = Command::start(&url, &["stdin", "stdout", "stderr"])
                .await
                .unwrap();
            node.guest.wait_open(1).await;
            let block = vec![7; 64 * 1024];
            for _ in 0..bytes / block.len() {
                let stdin = command.stdin.unwrap();
                command.writer.send(stdin, &block, false).await.unwrap();
            }
            drop(command);
            node.guest.wait_idle().await;
        }
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let node = Node::start_with("idle_timeout_secs = 1").await;
    limit(async {
        let url = node.exec(&["cat"], true);
        let mut idle = Command::start(&url, &["stdin", "stdout", "stderr"])
            .await
            .unwrap();
        assert!(idle.collect().await.is_err());
        node.guest.wait_idle().await;
        // A request that never ends is not waited for either.
        let url = node.exec(&["cat"], true);
        let address = url
            .strip_prefix("http://")
            .unwrap()
            .split('/')
            .next()
            .unwrap();
        let mut half = tokio::net::TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /exec").await.unwrap();
        let mut rest = Vec::new();
        let _reset = half.read_to_end(&mut rest).await;
        node.end().await;
    })
    .await;
}
