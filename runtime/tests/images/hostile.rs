//! What a bad registry, or a bad image, gets.

use std::time::{Duration, Instant};

use bulkhead_images::{PullSettings, digest::Digest, layer::Limits};
use serde_json::json;
use tonic::Code;

use super::{
    fixture::{Image, Layer, PATIENCE, Packing, Service, policy},
    server::{Reply, Server},
};

fn layer_path(image: &Image, layer: usize) -> String {
    format!("/blobs/{}", image.layers[layer].digest())
}

/// A server with one image whose answers to paths with `part` are replaced.
async fn replacing(
    image: &Image,
    part: impl Into<String>,
    reply: impl Fn(usize) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let part = part.into();
    Server::with(vec![image.clone()], move |asked| {
        if asked.path.contains(&part) {
            reply(asked.before)
        } else {
            None
        }
    })
    .await
}

#[tokio::test]
async fn a_good_image() {
    let image = Image::small(1);
    let server = replacing(&image, "nothing", |_| None).await;
    let service = Service::new();
    let record = service.pull(&server.image(0)).await.unwrap();
    assert_eq!(record.id, image.id());
    assert_eq!(record.repo_tags, [server.image(0)]);
    let digest = Digest::of(&image.manifest);
    assert_eq!(
        record.repo_digests,
        [format!("{}/test/image@{digest}", server.address)]
    );
    assert!(record.size > 0);
    assert_eq!(service.files().len(), 1);
    let disk = &service.images.disks(&record)[0];
    assert_eq!(disk.serial.len(), 20);
    assert_eq!(
        std::fs::metadata(&disk.path).unwrap().len(),
        record.layers[0].file_size
    );
}

#[tokio::test]
async fn lying_about_digests() {
    let image = Image::small(2);
    let flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    for (part, body) in [
        (layer_path(&image, 0), flipped(&image.layers[0].blob)),
        (
            Digest::of(&image.config).to_string(),
            flipped(&image.config),
        ),
    ] {
        let server = replacing(&image, part, move |_| Some(Reply::new(200, body.clone()))).await;
        let service = Service::new();
        let (code, text) = service.failure(&server.image(0)).await;
        assert_eq!(code, Code::DataLoss, "{text}");
        assert!(
            text.contains(&server.address) && text.contains("sha256:"),
            "{text}"
        );
        service.assert_nothing_left();
        assert!(service.files().is_empty());
    }

    // A manifest by tag with another digest in the header, and by digest with another body.
    let body = image.manifest.clone();
    let server = replacing(&image, "/manifests/", move |_| {
        let claimed = Digest::of(b"other").to_string();
        Some(Reply::new(200, body.clone()).header("Docker-Content-Digest", claimed))
    })
    .await;
    let service = Service::new();
    assert_eq!(service.failure(&server.image(0)).await.0, Code::DataLoss);
    let by_digest = format!("{}/test/image@{}", server.address, Digest::of(b"other"));
    assert_eq!(service.failure(&by_digest).await.0, Code::DataLoss);
    service.assert_nothing_left();
}

#[tokio::test]
async fn lying_about_what_a_layer_unpacks_to() {
    let layer = Layer::new(Packing::Gzip, &[("a", b"b")]);
    let image = Image::with_diff_ids(vec![layer], vec![Digest::of(b"something else")]);
    let server = replacing(&image, "nothing", |_| None).await;
    let service = Service::new();
    let (code, text) = service.failure(&server.image(0)).await;
    assert_eq!(code, Code::DataLoss, "{text}");
    assert!(text.contains("configuration says"), "{text}");
    service.assert_nothing_left();
    assert!(service.files().is_empty());
}

#[tokio::test]
async fn lying_about_sizes() {
    let image = Image::small(3);
    let blob = image.layers[0].blob.clone();
    for body in [[blob.clone(), vec![0]].concat(), blob[..100].to_vec()] {
        let server = replacing(&image, layer_path(&image, 0), move |_| {
            Some(Reply::new(200, body.clone()))
        })
        .await;
        let service = Service::new();
        let (code, text) = service.failure(&server.image(0)).await;
        assert_eq!(code, Code::DataLoss, "{text}");
        service.assert_nothing_left();
    }
}

#[tokio::test]
async fn too_many_requests() {
    let image = Image::small(4);
    let limited = |wait: &'static str| Reply::new(429, "").header("Retry-After", wait);
    // Twice, then well: waits as asked.
    let server = replacing(&image, layer_path(&image, 0), move |before| {
        (before < 2).then(|| limited("1"))
    })
    .await;
    let start = Instant::now();
    Service::new().pull(&server.image(0)).await.unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );

    // For ever: an error that says so.
    let server = replacing(&image, "/manifests/", move |_| Some(limited("0"))).await;
    let (code, text) = Service::new().failure(&server.image(0)).await;
    assert_eq!(code, Code::ResourceExhausted, "{text}");
    assert!(text.contains("4 tries") && text.contains("rate"), "{text}");
    assert_eq!(server.count("/manifests/"), 4);

    // For longer than anybody waits: at once.
    let server = replacing(&image, "/manifests/", move |_| Some(limited("3600"))).await;
    let (code, text) = Service::new().failure(&server.image(0)).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert!(text.contains("3600 s"), "{text}");
    assert_eq!(server.count("/manifests/"), 1);
}

#[tokio::test]
async fn a_failing_server() {
    let image = Image::small(5);
    let server = replacing(&image, "/blobs/", |before| {
        (before < 2).then(|| Reply::new(503, "wait"))
    })
    .await;
    Service::new().pull(&server.image(0)).await.unwrap();

    let server = replacing(&image, "/blobs/", |_| Some(Reply::new(500, "oops"))).await;
    let service = Service::new();
    let (code, text) = service.failure(&server.image(0)).await;
    assert_eq!(code, Code::Unavailable);
    assert!(text.contains("500") && text.contains("4 tries"), "{text}");
    assert!(text.starts_with("RegistryUnavailable"), "{text}");
    service.assert_nothing_left();
}

#[tokio::test]
async fn other_answers() {
    let image = Image::small(6);
    for (status, code, words) in [
        (400, Code::Unavailable, "400"),
        (401, Code::Unauthenticated, "pull access denied"),
        (403, Code::PermissionDenied, "pull access denied"),
        (404, Code::NotFound, "not found"),
        (418, Code::Unavailable, "418"),
    ] {
        let server = replacing(&image, "/manifests/", move |_| {
            Some(Reply::new(status, "{}"))
        })
        .await;
        let (got, text) = Service::new().failure(&server.image(0)).await;
        assert_eq!(got, code, "{text}");
        assert!(text.contains(&server.image(0)), "{text}");
        assert!(text.contains(words), "{text}");
        assert_eq!(
            server.count("/manifests/"),
            1,
            "{status} is not asked again"
        );
    }
}

#[tokio::test]
async fn nobody_listens() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let (code, text) = Service::new()
        .failure(&format!("{address}/test/image:0"))
        .await;
    assert_eq!(code, Code::Unavailable);
    assert!(
        text.contains(&address) && text.contains("cannot reach"),
        "{text}"
    );
}

#[tokio::test]
async fn cut_in_the_middle() {
    let noise = Layer::noise(7, 3_000_000);
    let image = Image::new(vec![Layer::new(Packing::Plain, &[("noise", &noise)])]);
    let blob = image.layers[0].blob.clone();
    let part = layer_path(&image, 0);

    // With ranges: each connection brings 700,000 bytes, and the next one asks for the rest.
    let server = Server::with(vec![image.clone()], {
        let (blob, part) = (blob.clone(), part.clone());
        move |asked| {
            let wanted = asked.path.contains(&part);
            wanted.then(|| {
                let reply = Reply::range(asked, &blob);
                let length = reply.body.len();
                reply.cut(length.min(700_000))
            })
        }
    })
    .await;
    let service = Service::new();
    service.pull(&server.image(0)).await.unwrap();
    let asked = server.asked();
    let starts: Vec<_> = asked
        .iter()
        .filter(|a| a.path.contains(&part))
        .map(|a| a.range_start())
        .collect();
    assert!(starts.len() >= 5, "{starts:?}");
    assert_eq!(starts[..2], [None, Some(700_000)]);

    // Without ranges: it all comes again, and what was there is skipped.
    let server = replacing(&image, part.clone(), move |before| {
        let reply = Reply::new(200, blob.clone());
        Some(if before == 0 {
            reply.cut(1_000_000)
        } else {
            reply
        })
    })
    .await;
    Service::new().pull(&server.image(0)).await.unwrap();
    assert_eq!(server.count(&part), 2);

    // With another range than was asked for.
    let blob = image.layers[0].blob.clone();
    let server = Server::with(vec![image.clone()], move |asked| {
        let wanted = asked.path.contains(&part);
        wanted.then(|| match asked.range_start() {
            None => Reply::new(200, blob.clone()).cut(1000),
            Some(_) => Reply::new(206, &blob[5..]).header("Content-Range", "bytes 5-9/10"),
        })
    })
    .await;
    let service = Service::new();
    let (code, text) = service.failure(&server.image(0)).await;
    assert_eq!(code, Code::Unavailable, "{text}");
    service.assert_nothing_left();
}

#[tokio::test]
async fn cut_at_once_and_always() {
    let image = Image::small(8);
    let blob = image.layers[0].blob.clone();
    let server = replacing(&image, layer_path(&image, 0), move |_| {
        Some(Reply::new(200, blob.clone()).cut(0))
    })
    .await;
    let service = Service::new();
    let (code, text) = service.failure(&server.image(0)).await;
    assert_eq!(code, Code::Unavailable);
    assert!(text.contains("cut"), "{text}");
    service.assert_nothing_left();
    assert!(service.files().is_empty());
}

#[tokio::test]
async fn silence_and_trickles_end_in_bounded_time() {
    let image = Image::small(9);
    let silent = || Reply {
        silent: true,
        ..Reply::new(200, "")
    };
    let blob = image.layers[0].blob.clone();
    let trickle = move || Reply {
        trickle: Some(Duration::from_millis(20)),
        ..Reply::new(200, blob.clone())
    };
    let replies: [(String, Box<dyn Fn() -> Reply + Send + Sync>); 3] = [
        ("/manifests/".to_owned(), Box::new(silent)),
        (layer_path(&image, 0), Box::new(silent)),
        (layer_path(&image, 0), Box::new(trickle)),
    ];
    for (part, reply) in replies {
        let server = replacing(&image, part, move |_| Some(reply())).await;
        let service = Service::new();
        let start = Instant::now();
        let (code, text) = service.failure(&server.image(0)).await;
        assert_eq!(code, Code::Unavailable, "{text}");
        assert!(text.contains("stall_timeout"), "{text}");
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        service.assert_nothing_left();
    }
}

#[tokio::test]
async fn redirects() {
    let image = Image::small(10);
    let server = Server::with(vec![image.clone()], |asked| {
        asked
            .path
            .contains("/manifests/")
            .then(|| Reply::new(307, "").header("Location", asked.path.clone()))
    })
    .await;
    let (code, text) = Service::new().failure(&server.image(0)).await;
    assert_eq!(code, Code::Unavailable);
    assert!(text.contains("redirected"), "{text}");
    assert_eq!(server.count("/manifests/"), 11);

    for location in ["", "file:///etc/passwd", "http://"] {
        let server = replacing(&image, "/manifests/", move |_| {
            Some(Reply::new(302, "").header("Location", location))
        })
        .await;
        let (code, text) = Service::new().failure(&server.image(0)).await;
        assert_eq!(code, Code::Unavailable, "{location}: {text}");
        assert!(text.contains("refused"), "{text}");
    }
}

#[tokio::test]
async fn huge_documents() {
    let image = Image::small(11);
    let announced = || Reply::new(200, "{}").header("Content-Length", "1000000000000");
    let endless = || Reply {
        endless: true,
        ..Reply::new(200, vec![b' '; 65536])
    };
    let replies: [Box<dyn Fn() -> Reply + Send + Sync>; 2] =
        [Box::new(announced), Box::new(endless)];
    for reply in replies {
        let server = replacing(&image, "/manifests/", move |_| Some(reply())).await;
        let (code, text) = Service::new().failure(&server.image(0)).await;
        assert_eq!(code, Code::FailedPrecondition, "{text}");
        assert!(text.contains("limit"), "{text}");
    }
}

#[tokio::test]
async fn manifests_that_are_none() {
    let image = Image::small(12);
    let arm = json!({"schemaVersion": 2, "manifests": [{
        "digest": Digest::of(b"arm"), "size": 1,
        "platform": {"os": "linux", "architecture": "arm64"},
    }]});
    let index_of_itself = |digest: Digest| {
        json!({"schemaVersion": 2, "manifests": [{
            "digest": digest, "size": 1, "platform": {"os": "linux", "architecture": "amd64"},
        }]})
    };
    for (body, code) in [
        ("<html>".to_owned(), Code::FailedPrecondition),
        (r#"{"schemaVersion": 1}"#.to_owned(), Code::Unimplemented),
        (arm.to_string(), Code::NotFound),
        (
            index_of_itself(Digest::of(b"gone")).to_string(),
            Code::NotFound,
        ),
    ] {
        let server = replacing(&image, "/manifests/0", move |_| {
            Some(Reply::new(200, body.clone()))
        })
        .await;
        let service = Service::new();
        let (got, text) = service.failure(&server.image(0)).await;
        assert_eq!(got, code, "{text}");
        service.assert_nothing_left();
    }
}

#[tokio::test]
async fn bombs_and_crowds() {
    // 64 MiB of zeros in some KiB, against a limit of 1 MiB.
    let zeros = vec![0; 64 << 20];
    let bomb = Image::new(vec![Layer::new(Packing::Zstd, &[("zeros", &zeros)])]);
    let many: Vec<_> = (0..5_u8)
        .map(|n| Layer::new(Packing::Plain, &[("n", &[n])]))
        .collect();
    let many = Image::new(many);
    let not_tar = Image::new(vec![Layer::of_tar(Packing::Gzip, &Layer::noise(1, 4096))]);
    let server = Server::with(vec![bomb, many, not_tar], |_| None).await;
    let settings = PullSettings {
        max_layers: 4,
        layer_limits: Limits {
            max_layer_bytes: 1 << 20,
            ..Limits::default()
        },
        ..PullSettings::default()
    };
    let service = Service::with(policy(), settings);
    for number in 0..3 {
        let (code, text) = service.failure(&server.image(number)).await;
        assert_eq!(code, Code::FailedPrecondition, "{text}");
        service.assert_nothing_left();
        assert!(service.files().is_empty());
    }
}
