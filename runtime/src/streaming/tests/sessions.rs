//! Sessions of clients that behave.

use bulkhead_proto::cri as v1;
use bulkhead_streaming::spdy::{
    client::{self, Command},
    frame::{self, Event},
};
use futures::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tonic::Code;

use super::{DEAD, Node, POD, RUNNING, limit};
use crate::{error::Grpc as _, streaming};

#[tokio::test]
async fn exit_codes_output_and_errors_come_to_their_end() {
    let node = Node::start().await;
    limit(async {
        let url = node.exec(&["exit", "3"], false);
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        let mut command = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
        let ended = command.collect().await.unwrap();
        assert_eq!(
            (&ended.stdout[..], &ended.stderr[..]),
            (&b"out\n"[..], &b"err\n"[..])
        );
        let status: serde_json::Value = serde_json::from_slice(&ended.status).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        // Once it is used, it is used.
        let again = client::connect(&url, "v4.channel.k8s.io")
            .await
            .unwrap_err();
        assert!(again.to_string().contains("404"), "{again}");
        for (command, text) in [
            ("missing", "no such file: missing"),
            ("dies", "lost the connection"),
            ("liar", "unknown kind 255"),
        ] {
            let url = node.exec(&[command], false);
            let mut command = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
            let ended = command.collect().await.unwrap();
            let status: serde_json::Value = serde_json::from_slice(&ended.status).unwrap();
            assert_eq!(status["reason"], "InternalError");
            assert!(
                status["message"].as_str().unwrap().contains(text),
                "{status}"
            );
        }
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn older_protocols_get_text_and_a_ping_comes_back() {
    let node = Node::start().await;
    limit(async {
        let url = node.exec(&["exit", "4"], false);
        let (mut reader, mut writer) = client::connect(&url, "v2.channel.k8s.io").await.unwrap();
        writer.raw(&frame::ping(7)).await.unwrap();
        while reader.next().await.unwrap() != Some(Event::Ping { id: 7 }) {}
        let error = writer.open(&[("streamtype", "error")]).await.unwrap();
        for name in ["stdout", "stderr"] {
            writer.open(&[("streamtype", name)]).await.unwrap();
        }
        let mut text = Vec::new();
        loop {
            match reader.next().await.unwrap().unwrap() {
                Event::Data { id, data, fin } if id == error => {
                    text.extend_from_slice(&data);
                    if fin {
                        break;
                    }
                }
                _ => {}
            }
        }
        assert!(String::from_utf8(text).unwrap().ends_with("exit code: 4"));
        drop((reader, writer));
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn many_pairs_are_forwarded_in_one_connection() {
    let node = Node::start().await;
    limit(async {
        let (mut reader, mut writer) = client::connect(&node.forward(), "portforward.k8s.io")
            .await
            .unwrap();
        let mut data_streams = Vec::new();
        for pair in 0..20 {
            let request = pair.to_string();
            let port = if pair % 5 == 4 { "81" } else { "7" };
            let common = [("port", port), ("requestid", request.as_str())];
            let with = |kind| [("streamtype", kind), common[0], common[1]];
            let error = writer.open(&with("error")).await.unwrap();
            let data = writer.open(&with("data")).await.unwrap();
            writer.send(error, b"", true).await.unwrap();
            writer
                .send(data, format!("hello {pair}").as_bytes(), true)
                .await
                .unwrap();
            data_streams.push((data, error, pair));
        }
        let mut texts = std::collections::HashMap::<u32, Vec<u8>>::new();
        let mut ends = 0;
        while ends < 40 {
            if let Event::Data { id, data, fin } = reader.next().await.unwrap().unwrap() {
                texts.entry(id).or_default().extend_from_slice(&data);
                ends += usize::from(fin);
            }
        }
        for (data, error, pair) in data_streams {
            let text = |id| String::from_utf8(texts[&id].clone()).unwrap();
            if pair % 5 == 4 {
                assert!(
                    text(error).contains("error forwarding port 81"),
                    "{}",
                    text(error)
                );
                assert_eq!(text(data), "");
            } else {
                assert_eq!(
                    (text(data), text(error)),
                    (format!("hello {pair}"), String::new())
                );
            }
        }
        drop((reader, writer));
        node.end().await;
    })
    .await;
}

async fn websocket(url: &str, protocol: &str) -> WebSocketStream<tokio::net::TcpStream> {
    let head = format!(
        "GET\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    );
    let (status, head, input, stream) = client::request(url, &head).await.unwrap();
    assert_eq!(status, 101, "{head}");
    assert!(head.contains(protocol), "{head}");
    WebSocketStream::from_partially_read(stream, input.to_vec(), Role::Client, None).await
}

#[tokio::test]
async fn a_websocket_closes_input_and_reads_to_the_end() {
    let node = Node::start().await;
    limit(async {
        let mut socket = websocket(&node.exec(&["cat"], true), "v5.channel.k8s.io").await;
        for message in [&b"\0hello "[..], b"\0world", b"\xff\0"] {
            socket
                .send(Message::binary(message.to_vec()))
                .await
                .unwrap();
        }
        let (mut out, mut status) = (Vec::new(), Vec::new());
        while let Some(message) = socket.next().await {
            match message.unwrap() {
                Message::Binary(bytes) => match bytes.first() {
                    Some(1) => out.extend_from_slice(&bytes[1..]),
                    Some(3) => status.extend_from_slice(&bytes[1..]),
                    _ => {}
                },
                Message::Close(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(out, b"hello world");
        assert!(String::from_utf8(status).unwrap().contains("Success"));
        drop(socket);

        let protocol = "v4.base64.channel.k8s.io";
        let mut socket = websocket(&node.exec(&["exit", "2"], false), protocol).await;
        let mut texts = Vec::new();
        while let Some(message) = socket.next().await {
            if let Message::Text(text) = message.unwrap() {
                texts.push(text.to_string());
            }
        }
        assert!(texts.contains(&"1b3V0Cg==".to_owned()), "{texts:?}");
        drop(socket);
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn forwarding_by_websocket_names_its_ports_first() {
    let node = Node::start().await;
    limit(async {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: POD.to_owned(),
            port: vec![7, 81],
        };
        let url = streaming::port_forward(&node.app, request).unwrap();
        let mut socket = websocket(&url, "v4.channel.k8s.io").await;
        socket
            .send(Message::binary(b"\0ping".to_vec()))
            .await
            .unwrap();
        let mut channels = [const { Vec::new() }; 4];
        while channels[0].len() < 6 || channels[3].len() < 3 {
            if let Message::Binary(bytes) = socket.next().await.unwrap().unwrap() {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
        assert_eq!(channels[0], b"\x07\0ping");
        assert_eq!(channels[1], b"\x07\0");
        assert_eq!(channels[2], b"\x51\0");
        assert!(String::from_utf8_lossy(&channels[3]).contains("error forwarding port 81"));
        drop(socket);
        node.end().await;
    })
    .await;
}

#[tokio::test]
async fn requests_are_checked() {
    let node = Node::start().await;
    let exec = |id: &str, tty| {
        let request = v1::ExecRequest {
            container_id: id.to_owned(),
            cmd: vec!["sh".into()],
            tty,
            stdin: true,
            stdout: true,
            stderr: true,
        };
        streaming::exec(&node.app, request).map_err(|error| error.code())
    };
    assert!(exec(RUNNING, false).is_ok());
    assert_eq!(exec(RUNNING, true), Err(Code::InvalidArgument));
    assert_eq!(exec(DEAD, false), Err(Code::FailedPrecondition));
    assert_eq!(exec("nobody", false), Err(Code::NotFound));
    assert_eq!(exec("", false), Err(Code::InvalidArgument));
    let forward = |id: &str, port| {
        let request = v1::PortForwardRequest {
            pod_sandbox_id: id.to_owned(),
            port,
        };
        streaming::port_forward(&node.app, request).map_err(|error| error.code())
    };
    assert!(forward(POD, vec![]).is_ok());
    assert_eq!(forward(POD, vec![0]), Err(Code::InvalidArgument));
    assert_eq!(forward("nobody", vec![]), Err(Code::NotFound));
    assert_eq!(forward("", vec![]), Err(Code::InvalidArgument));
    node.end().await;
}

#[tokio::test]
async fn a_certificate_makes_the_server_speak_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let lines = format!("tls_certificate = {certificate:?}\ntls_key = {key:?}");
    let node = Node::start_with(&lines).await;
    limit(async {
        let url = node.exec(&["exit", "0"], false);
        assert!(url.starts_with("https://"), "{url}");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .no_proxy()
            .build()
            .unwrap();
        let answer = client.get(&url).send().await.unwrap();
        // Known, but no upgrade: the token is not used up by that.
        assert_eq!(answer.status(), 400);
        let forged = url.replace("/exec/", "/exec/x");
        assert_eq!(client.get(&forged).send().await.unwrap().status(), 404);
        node.end().await;
    })
    .await;
}
