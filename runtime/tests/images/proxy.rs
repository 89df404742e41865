//! Mirrors, tokens, and whom credentials are shown to.

use bulkhead_images::{PullSecret, digest::Digest};
use bulkhead_runtime::error::Grpc as _;
use tonic::Code;

use super::{
    fixture::{Image, Service},
    server::{BASIC, Reply, Server, login},
};

#[tokio::test]
async fn a_mirror_below_a_path_keeps_the_name() {
    let image = Image::small(1);
    let blobs: Vec<Vec<u8>> = image.blobs().map(<[u8]>::to_vec).collect();
    let manifest = image.manifest.clone();
    let mirror = Server::raw(move |asked| {
        let path = asked.path.split('?').next().unwrap_or_default();
        match path.strip_prefix("/v2/registry.example/e2e/busybox/") {
            Some(rest) if rest.starts_with("manifests/") => Reply::new(200, manifest.clone())
                .header("Content-Type", super::fixture::MANIFEST_TYPE),
            Some(rest) => blobs
                .iter()
                .find(|blob| rest.ends_with(&Digest::of(blob).to_string()))
                .map_or(Reply::new(404, ""), |blob| Reply::new(200, blob.clone())),
            None => Reply::new(404, ""),
        }
    })
    .await;
    let service = Service::new();
    service.hosts(
        "registry.example",
        &format!(
            "[host.\"http://{}/v2/registry.example\"]\noverride_path = true\n[host.\"http://{}/v2/registry.example\".header]\nx-mirror = \"key\"\n",
            mirror.address, mirror.address
        ),
    );
    let reference = "registry.example/e2e/busybox:1.29-2";
    let record = service
        .images
        .pull(reference, Some(&login()))
        .await
        .unwrap();
    assert_eq!(record.repo_tags, [reference]);
    let digest = Digest::of(&image.manifest);
    assert_eq!(
        record.repo_digests,
        [format!("registry.example/e2e/busybox@{digest}")]
    );
    assert!(service.images.find(reference).unwrap().is_some());
    for asked in mirror.asked() {
        assert!(
            asked.path.ends_with("?ns=registry.example"),
            "{}",
            asked.path
        );
        assert_eq!(asked.headers["x-mirror"], "key");
        assert_eq!(
            asked.authorization(),
            None,
            "the registry's secret is not the mirror's"
        );
    }
}

#[tokio::test]
async fn mirrors_fail_over() {
    let image = Image::small(2);
    let good = Server::with(vec![image.clone()], |_| None).await;
    let empty = Server::raw(|_| Reply::new(404, "")).await;
    let failing = Server::raw(|_| Reply::new(500, "")).await;
    let service = Service::new();
    service.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n[host.\"http://127.0.0.1:1\"]\n",
            good.address, empty.address, failing.address
        ),
    );
    service.pull("registry.example/test/image:0").await.unwrap();
    assert!(empty.count("/manifests/") == 1 && failing.count("/manifests/") == 2);
    // The host that had the manifest is asked for the blobs first.
    assert_eq!(empty.count("/blobs/") + failing.count("/blobs/"), 0);

    // When all fail, the reader learns what the registry said.
    let (code, text) = service.failure("registry.example/test/image:none").await;
    assert_eq!(code, Code::NotFound, "{text}");
    assert!(text.contains(&good.address), "{text}");

    // A host may be there for content only.
    service.hosts(
        "content.example",
        &format!(
            "server = \"http://{}\"\ncapabilities = [\"pull\"]\n",
            good.address
        ),
    );
    let (code, text) = service.failure("content.example/test/image:0").await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("resolve"), "{text}");
}

#[tokio::test]
async fn a_broken_hosts_file_is_told() {
    let service = Service::new();
    service.hosts("registry.example", "server = ");
    let (code, text) = service.failure("registry.example/a:1").await;
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("registry.example/hosts.toml"), "{text}");
}

/// A registry that wants a token which another server gives out.
struct Guarded {
    registry: Server,
    tokens: Server,
}

async fn guarded(image: &Image, life: usize) -> Guarded {
    let tokens = Server::raw(|asked| {
        let good = match asked.method.as_str() {
            "GET" => asked.authorization() == Some(BASIC),
            // The OAuth2 form, for identity tokens.
            _ => true,
        };
        if !good {
            return Reply::new(401, "{}");
        }
        let body = format!(
            "{{\"token\": \"token-{}\", \"expires_in\": 300}}",
            asked.before
        );
        Reply::new(200, body)
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let registry = Server::with(vec![image.clone()], {
        let uses = std::sync::atomic::AtomicUsize::new(0);
        move |asked| {
            // A token is good for some requests only: sessions outlive tokens.
            let used = uses.load(std::sync::atomic::Ordering::SeqCst);
            let wanted = format!("Bearer token-{}", used / life);
            if asked.authorization() == Some(wanted.as_str()) {
                uses.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                return None;
            }
            let challenge = format!(
                "Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:test/image:pull\""
            );
            Some(Reply::new(401, "{}").header("WWW-Authenticate", challenge))
        }
    })
    .await;
    Guarded { registry, tokens }
}

#[tokio::test]
async fn tokens_are_fetched_and_renewed() {
    let image = Image::small(3);
    let guarded = guarded(&image, 2).await;
    let service = Service::new();
    service
        .images
        .pull(&guarded.registry.image(0), Some(&login()))
        .await
        .unwrap();
    let asked = guarded.tokens.asked();
    assert_eq!(asked.len(), 2, "three requests, two for each token");
    assert!(asked[0].path.contains("service=test"), "{}", asked[0].path);
    assert!(
        asked[0]
            .path
            .contains("scope=repository%3Atest%2Fimage%3Apull"),
        "{}",
        asked[0].path
    );
    // The password goes to the token service, and never to the registry.
    let shown = guarded.registry.asked();
    assert!(
        shown
            .iter()
            .all(|asked| asked.authorization() != Some(BASIC))
    );

    // An identity token goes by the OAuth2 form.
    let identity = PullSecret {
        identity_token: "id".to_owned(),
        ..PullSecret::default()
    };
    let guarded = super::proxy::guarded(&image, 100).await;
    service
        .images
        .pull(&guarded.registry.image(0), Some(&identity))
        .await
        .unwrap();
    assert_eq!(guarded.tokens.asked()[0].method, "POST");

    // A registry token is sent as it is.
    let bearer = PullSecret {
        registry_token: "token-0".to_owned(),
        ..PullSecret::default()
    };
    let guarded = super::proxy::guarded(&image, 100).await;
    service
        .images
        .pull(&guarded.registry.image(0), Some(&bearer))
        .await
        .unwrap();
    assert!(guarded.tokens.asked().is_empty());
}

#[tokio::test]
async fn wrong_credentials_name_the_realm() {
    let image = Image::small(4);
    let guarded = guarded(&image, 100).await;
    let wrong = PullSecret {
        password: "wrong".to_owned(),
        ..login()
    };
    let service = Service::new();
    for auth in [None, Some(&wrong)] {
        let error = service
            .images
            .pull(&guarded.registry.image(0), auth)
            .await
            .unwrap_err();
        let status = error.status();
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(
            status.message().contains(&guarded.tokens.address),
            "{status}"
        );
        assert!(!status.message().contains("wrong"), "{status}");
    }
    let bad = PullSecret {
        auth: "no base64!".to_owned(),
        ..PullSecret::default()
    };
    let error = service
        .images
        .pull(&guarded.registry.image(0), Some(&bad))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn odd_token_services() {
    let image = Image::small(5);
    let answers = ["", "{}", "{\"token\": \"line\\nbreak\"}", "{\"token\": 5}"];
    for answer in answers {
        let tokens = Server::raw(move |_| Reply::new(200, answer)).await;
        let realm = format!("http://{}/token", tokens.address);
        let registry = Server::with(vec![image.clone()], move |_| {
            let challenge = format!("Bearer realm=\"{realm}\"");
            Some(Reply::new(401, "").header("WWW-Authenticate", challenge))
        })
        .await;
        let (code, text) = Service::new().failure(&registry.image(0)).await;
        assert_eq!(code, Code::Unauthenticated, "{text}");
        assert!(text.contains("token service"), "{text}");
    }
    let registry = Server::with(vec![image], |_| {
        Some(Reply::new(401, "").header("WWW-Authenticate", "Bearer realm=\"nonsense\""))
    })
    .await;
    assert_eq!(
        Service::new().failure(&registry.image(0)).await.0,
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn a_redirect_takes_no_credentials_along() {
    let image = Image::small(6);
    let blob = image.layers[0].blob.clone();
    let storage = Server::raw(move |_| Reply::new(200, blob.clone())).await;
    let location = format!("http://{}/signed", storage.address);
    let path = image.layers[0].digest().to_string();
    let registry = Server::with(vec![image.clone()], move |asked| {
        if asked.authorization() != Some(BASIC) {
            let challenge = "Basic realm=\"test\"";
            return Some(Reply::new(401, "").header("WWW-Authenticate", challenge));
        }
        asked
            .path
            .contains(&path)
            .then(|| Reply::new(307, "").header("Location", location.clone()))
    })
    .await;
    let service = Service::new();
    service.hosts(
        &registry.address,
        &format!(
            "server = \"http://{}\"\n[header]\nx-own = \"secret too\"\n",
            registry.address
        ),
    );
    service
        .images
        .pull(&registry.image(0), Some(&login()))
        .await
        .unwrap();
    assert!(
        registry
            .asked()
            .iter()
            .all(|asked| asked.headers.contains_key("x-own"))
    );
    let asked = storage.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].authorization(), None);
    assert!(!asked[0].headers.contains_key("x-own"));
}
