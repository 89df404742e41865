//! hosts.toml as containerd reads it: who is asked for what, in which order, and whom credentials
//! and headers are shown to.

use bulkhead_images::{PullSecret, digest::Digest};
use bulkhead_runtime::error::Grpc as _;
use tonic::Code;

use super::{
    fixture::{Image, Layer, PATIENCE, Packing, Service, policy},
    server::{Asked, BASIC, Reply, Server, login},
};

/// Pulls the registry's first image.
async fn pull_as(
    service: &Service,
    registry: &Server,
    secret: Option<&PullSecret>,
) -> Result<std::sync::Arc<bulkhead_images::ImageRecord>, bulkhead_images::SharedError> {
    let reference = registry.image(0);
    tokio::time::timeout(PATIENCE, service.images.pull(&reference, secret))
        .await
        .expect("a pull must end")
}

/// A registry that wants a password.
async fn private(image: &Image) -> Server {
    Server::with(vec![image.clone()], |asked| {
        (asked.authorization() != Some(BASIC))
            .then(|| Reply::new(401, "{}").header("WWW-Authenticate", "Basic realm=\"private\""))
    })
    .await
}

/// Serves an image under any path that ends as a registry's does.
fn anywhere(image: &Image) -> impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static {
    let image = image.clone();
    move |asked| {
        let path = asked.path.split('?').next().unwrap_or_default();
        if path.contains("/manifests/") {
            return Some(
                Reply::new(200, image.manifest.clone())
                    .header("Content-Type", super::fixture::MANIFEST_TYPE),
            );
        }
        image
            .blobs()
            .find(|blob| path.ends_with(&Digest::of(blob).to_string()))
            .map(|blob| Reply::new(200, blob))
    }
}

#[tokio::test]
async fn a_table_that_names_the_registry_itself_gets_its_credentials() {
    let image = Image::small(1);
    let registry = private(&image).await;
    let service = Service::new();
    for text in [
        format!("[host.\"http://{}\"]\n", registry.address),
        format!(
            "[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
            registry.address
        ),
        // Behind a mirror that is not there.
        format!(
            "[host.\"http://127.0.0.1:1\"]\ndial_timeout = \"1s\"\n[host.\"http://{}/v2\"]\noverride_path = true\n",
            registry.address
        ),
        format!("server = \"http://{}\"\n", registry.address),
    ] {
        service.hosts(&registry.address, &text);
        let before = registry.asked().len();
        let pulled = pull_as(&service, &registry, Some(&login())).await;
        pulled.unwrap_or_else(|error| panic!("{text}: {error}"));
        service.images.remove(&registry.image(0)).await.unwrap();
        for asked in registry.asked().into_iter().skip(before) {
            assert!(!asked.path.contains("ns="), "{text}: {}", asked.path);
        }
    }
}

#[tokio::test]
async fn the_registrys_credentials_are_not_a_mirrors() {
    let image = Image::small(2);
    let registry = private(&image).await;
    let mirror = private(&image).await;
    let service = Service::new();
    service.hosts(
        &registry.address,
        &format!("[host.\"http://{}\"]\n", mirror.address),
    );
    let pulled = pull_as(&service, &registry, Some(&login())).await;
    pulled.unwrap();
    assert!(!mirror.asked().is_empty());
    for asked in mirror.asked() {
        assert_eq!(asked.authorization(), None);
        assert!(asked.path.contains("ns="), "{}", asked.path);
    }
}

#[tokio::test]
async fn a_mirror_for_content_alone_serves_blobs_while_the_registry_resolves() {
    let image = Image::new(vec![
        Layer::new(Packing::Gzip, &[("a", &Layer::noise(1, 9_000))]),
        Layer::new(Packing::Plain, &[("b", &Layer::noise(2, 9_000))]),
    ]);
    let origin = Server::with(vec![image.clone()], |_| None).await;
    let first = Server::with(vec![image.clone()], |_| None).await;
    let second = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    service.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n[host.\"http://{}\"]\ncapabilities = [\"PULL\"]\n",
            origin.address, first.address, second.address
        ),
    );
    service.pull("registry.example/test/image:0").await.unwrap();
    assert!(origin.count("/manifests/0") > 0);
    assert_eq!(origin.count("/blobs/"), 0);
    assert_eq!(first.count("/manifests/0"), 0, "tags are not the mirror's");
    assert_eq!(first.count("/blobs/"), 3, "in the order of the file");
    assert!(second.asked().is_empty());
}

#[tokio::test]
async fn a_mirror_that_has_a_part_of_the_image_serves_that() {
    let image = Image::new(vec![
        Layer::new(Packing::Gzip, &[("a", &Layer::noise(1, 9_000))]),
        Layer::new(Packing::Gzip, &[("b", &Layer::noise(2, 9_000))]),
        Layer::new(Packing::Gzip, &[("c", &Layer::noise(3, 9_000))]),
    ]);
    let origin = Server::with(vec![image.clone()], |_| None).await;
    let lacks = image.layers[0].digest().to_string();
    let lacking = lacks.clone();
    let mirror = Server::with(vec![image.clone()], move |asked| {
        asked.path.contains(&lacking).then(|| Reply::new(404, "{}"))
    })
    .await;
    let service = Service::with(
        policy(),
        bulkhead_images::PullSettings {
            parallel_layers: 1,
            ..Default::default()
        },
    );
    service.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
            origin.address, mirror.address
        ),
    );
    service.pull("registry.example/test/image:0").await.unwrap();
    assert_eq!(origin.count("/blobs/"), 1);
    assert_eq!(origin.count(&lacks), 1);
    assert_eq!(mirror.count("/blobs/"), 4);
}

#[tokio::test]
async fn no_capabilities_said_are_all_capabilities() {
    let image = Image::small(4);
    let mirror = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    service.hosts(
        "registry.example",
        &format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"http://{}\"]\ncapabilities = []\n",
            mirror.address
        ),
    );
    service.pull("registry.example/test/image:0").await.unwrap();
    assert!(mirror.count("/manifests/0") > 0 && mirror.count("/blobs/") == 2);
}

#[tokio::test]
async fn a_mirror_that_serves_wrong_bytes_is_left_for_the_next_host() {
    let layers = vec![
        Layer::new(Packing::Gzip, &[("a", &Layer::noise(5, 400_000))]),
        Layer::new(Packing::Plain, &[("b", &Layer::noise(6, 400_000))]),
    ];
    let image = Image::new(layers);
    let origin = Server::with(vec![image.clone()], |_| None).await;
    let blobs: Vec<Vec<u8>> = image.blobs().map(<[u8]>::to_vec).collect();
    type Spoil = fn(Vec<u8>) -> Reply;
    let ways: [(&str, Spoil); 6] = [
        ("its end", |mut blob| {
            let at = blob.len() - 1;
            blob[at] ^= 1;
            Reply::new(200, blob)
        }),
        ("its beginning", |mut blob| {
            blob[0] ^= 0xff;
            Reply::new(200, blob)
        }),
        ("all of it", |blob| Reply::new(200, vec![b'x'; blob.len()])),
        ("its length", |blob| Reply::new(200, &blob[1..])),
        ("more than there is", |mut blob| {
            blob.extend_from_slice(&[0; 500]);
            Reply {
                endless: true,
                ..Reply::new(200, blob)
            }
        }),
        // What comes is wrong, and stops before anybody can know it.
        ("half", |mut blob| {
            blob[10] ^= 0xff;
            let half = blob.len() / 2;
            Reply::new(200, blob).cut(half)
        }),
    ];
    for (what, spoil) in ways {
        let bad = blobs.clone();
        let mirror = Server::raw(move |asked| {
            bad.iter()
                .find(|blob| asked.path.contains(&Digest::of(blob).to_string()))
                .map_or(Reply::new(404, ""), |blob| spoil(blob.clone()))
        })
        .await;
        let service = Service::new();
        service.hosts(
            "registry.example",
            &format!(
                "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
                origin.address, mirror.address
            ),
        );
        let pulled = service.pull("registry.example/test/image:0").await;
        let record = pulled.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(record.id, image.id(), "{what}");
        assert!(mirror.count("/blobs/") > 0, "{what}");
        let odd: Vec<_> = service
            .files()
            .into_iter()
            .filter(|path| path.extension().is_none_or(|end| end != "erofs"))
            .collect();
        assert!(odd.is_empty(), "{what}: {odd:?}");
    }
}

#[tokio::test]
async fn when_every_host_serves_wrong_bytes_the_pull_says_so() {
    let image = Image::small(7);
    let path = image.layers[0].digest().to_string();
    let spoiled = || {
        let (path, mut blob) = (path.clone(), image.layers[0].blob.clone());
        let at = blob.len() / 2;
        blob[at] ^= 1;
        Server::with(vec![image.clone()], move |asked| {
            asked
                .path
                .contains(&path)
                .then(|| Reply::new(200, blob.clone()))
        })
    };
    let (origin, mirror) = (spoiled().await, spoiled().await);
    let service = Service::new();
    service.hosts(
        "registry.example",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            origin.address, mirror.address
        ),
    );
    let (code, text) = service.failure("registry.example/test/image:0").await;
    assert_eq!(code, Code::DataLoss, "{text}");
    assert!(text.contains(&origin.address), "{text}");
    assert!(mirror.count("/blobs/") > 0 && origin.count("/blobs/") > 0);
    service.assert_nothing_left();
}

/// A registry whose token service is on the same host, behind `redirects` redirects.
async fn with_tokens(image: &Image, first: &'static str) -> Server {
    let serve = anywhere(image);
    Server::raw(move |asked| {
        let path = asked.path.split('?').next().unwrap_or_default();
        let host = &asked.headers["host"];
        match path {
            "/token" => {
                let key = asked.headers.get("x-key").map(String::as_str);
                if key != Some("let me in") {
                    return Reply::new(403, "{}");
                }
                Reply::new(
                    200,
                    "{\"token\": null, \"access_token\": \"t\", \"expires_in\": null}",
                )
            }
            "/moved" => Reply::new(301, "").header("Location", "/token?service=test"),
            "/found" => Reply::new(307, "").header("Location", format!("http://{host}/moved")),
            "/circle" => Reply::new(302, "").header("Location", "/circle"),
            _ if asked.authorization() == Some("Bearer t") => {
                serve(asked).unwrap_or(Reply::new(404, "{}"))
            }
            _ => Reply::new(401, "{}").header(
                "WWW-Authenticate",
                format!("Bearer realm=\"http://{host}{first}\",service=\"test\""),
            ),
        }
    })
    .await
}

#[tokio::test]
async fn headers_reach_the_token_service_on_the_same_host() {
    let image = Image::small(8);
    for realm in ["/token", "/moved", "/found"] {
        let registry = with_tokens(&image, realm).await;
        let service = Service::new();
        service.hosts(
            &registry.address,
            &format!(
                "server = \"http://{}\"\n[header]\nx-key = \"let me in\"\n",
                registry.address
            ),
        );
        for secret in [None, Some(login())] {
            let pulled = pull_as(&service, &registry, secret.as_ref()).await;
            pulled.unwrap_or_else(|error| panic!("{realm}: {error}"));
            service.images.remove(&registry.image(0)).await.unwrap();
        }
        assert!(registry.count("/token") > 0);
    }
    let registry = with_tokens(&image, "/circle").await;
    let (_, text) = Service::new().failure(&registry.image(0)).await;
    assert!(text.contains("more than 10 times"), "{text}");
}

#[tokio::test]
async fn a_token_service_that_redirects_to_another_host_takes_nothing_along() {
    let image = Image::small(9);
    let elsewhere = Server::raw(|_| Reply::new(200, "{\"token\": \"t\"}")).await;
    let target = format!("http://{}/other", elsewhere.address);
    let tokens = Server::raw(move |asked| {
        if asked.method == "GET" {
            assert_eq!(asked.authorization(), Some(BASIC));
        }
        Reply::new(307, "").header("Location", target.clone())
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let serve = anywhere(&image);
    let registry = Server::raw(move |asked| {
        if asked.authorization() == Some("Bearer t") {
            return serve(asked).unwrap_or(Reply::new(404, "{}"));
        }
        Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
    })
    .await;
    let service = Service::new();
    let pulled = pull_as(&service, &registry, Some(&login())).await;
    pulled.unwrap();
    let asked = elsewhere.asked();
    assert_eq!((asked.len(), asked[0].authorization()), (1, None));

    // An identity token is the credential itself: it is not sent on.
    let identity = PullSecret {
        identity_token: "id".to_owned(),
        ..PullSecret::default()
    };
    let service = Service::new();
    let error = service
        .images
        .pull(&registry.image(0), Some(&identity))
        .await
        .unwrap_err();
    assert!(
        error.status().message().contains("identity token"),
        "{error}"
    );
    assert_eq!(elsewhere.asked().len(), 1);
}

#[tokio::test]
async fn a_directory_with_the_port_in_either_form_is_found() {
    let image = Image::small(10);
    let mirror = Server::with(vec![image.clone()], |_| None).await;
    for name in [
        "registry.example:5000",
        "registry.example_5000_",
        "[2001:db8::1]:5000",
        "[2001:db8::1]_5000_",
    ] {
        let service = Service::new();
        service.hosts(name, &format!("[host.\"http://{}\"]\n", mirror.address));
        let host = name.replace("_5000_", ":5000");
        let reference = format!("{host}/test/image:0");
        let record = service.pull(&reference).await.unwrap();
        assert_eq!(record.repo_tags, std::slice::from_ref(&reference));
        assert!(service.images.find(&reference).unwrap().is_some());
    }
}
