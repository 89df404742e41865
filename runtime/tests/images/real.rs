//! Against Debian's docker-registry, started here on a free port.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use bulkhead_images::{PullSecret, digest::Digest};
use bulkhead_runtime::error::Grpc as _;
use tonic::Code;

use super::fixture::{INDEX_TYPE, Image, Layer, MANIFEST_TYPE, PATIENCE, Packing, Service, skip};

/// A running docker-registry.
struct Registry {
    address: String,
    child: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Serves what is in `dir`; `extra` goes into its configuration.
    fn start(test: &str, dir: &Path, http: &str, extra: &str) -> Option<Self> {
        if Command::new("docker-registry")
            .arg("--version")
            .output()
            .is_err()
        {
            skip(
                test,
                "docker-registry is not installed (apt-get install docker-registry)",
            );
            return None;
        }
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().to_string()
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  \
             filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{http}{extra}",
            dir.join("data").display()
        );
        let file = dir.join(format!("{}.yml", address.replace(':', "-")));
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { address, child };
        let start = Instant::now();
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(
                start.elapsed() < PATIENCE,
                "docker-registry does not come up"
            );
            std::thread::yield_now();
        }
        Some(registry)
    }

    /// Pushes an image under a tag.
    async fn push(&self, repository: &str, tag: &str, image: &Image) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let base = format!("http://{}/v2/{repository}", self.address);
        for blob in image.blobs() {
            let begun = client
                .post(format!("{base}/blobs/uploads/"))
                .send()
                .await
                .unwrap();
            let location = begun.headers()["location"].to_str().unwrap();
            let mark = if location.contains('?') { '&' } else { '?' };
            let target = format!("{location}{mark}digest={}", Digest::of(blob));
            let put = client.put(target).body(blob.to_vec()).send().await.unwrap();
            assert_eq!(put.status(), 201);
        }
        let put = async |name: &str, media_type: &str, body: Vec<u8>| {
            let request = client.put(format!("{base}/manifests/{name}"));
            let put = request
                .header("Content-Type", media_type)
                .body(body)
                .send()
                .await
                .unwrap();
            assert_eq!(
                put.status(),
                201,
                "{}",
                put.text().await.unwrap_or_default()
            );
        };
        put(tag, MANIFEST_TYPE, image.manifest.clone()).await;
    }
}

fn three_packings() -> Image {
    let noise = Layer::noise(1, 2_000_000);
    Image::new(vec![
        Layer::new(
            Packing::Gzip,
            &[("gzip", &noise[..900_000]), ("dir/.wh.gone", b"")],
        ),
        Layer::new(Packing::Zstd, &[("zstd", &noise[900_000..])]),
        Layer::new(Packing::Plain, &[("plain", b"plain")]),
    ])
}

#[tokio::test]
async fn by_tag_by_digest_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start("by_tag_by_digest_and_again", dir.path(), "", "") else {
        return;
    };
    let image = three_packings();
    registry.push("a/b", "v1", &image).await;
    let service = Service::new();
    let name = format!("{}/a/b", registry.address);
    let record = service.pull(&format!("{name}:v1")).await.unwrap();
    assert_eq!(record.id, image.id());
    assert_eq!(record.layers.len(), 3);
    assert_eq!(record.config.user, "1002");
    let by_digest = format!("{name}@{}", Digest::of(&image.manifest));
    assert_eq!(record.repo_digests.join(" "), by_digest);

    // By digest alone: the same image, and no further tag.
    let again = service.pull(&by_digest).await.unwrap();
    assert_eq!(again.repo_tags, [format!("{name}:v1")]);
    for reference in [
        format!("{name}:v1"),
        by_digest.clone(),
        image.id(),
        image.id()[7..19].into(),
    ] {
        assert_eq!(
            service.images.find(&reference).unwrap().unwrap().id,
            image.id()
        );
    }

    // EROFS as its own tools see it.
    for file in service.files() {
        match Command::new("fsck.erofs").arg(&file).output() {
            Ok(checked) => assert!(checked.status.success(), "{checked:?}"),
            Err(_) => skip(
                "fsck.erofs of pulled layers",
                "erofs-utils is not installed",
            ),
        }
    }

    // The tag moves.
    let other = Image::small(77);
    registry.push("a/b", "v1", &other).await;
    assert_eq!(
        service.pull(&format!("{name}:v1")).await.unwrap().id,
        other.id()
    );
    let old = service.images.find(&by_digest).unwrap().unwrap();
    assert!(old.repo_tags.is_empty() && old.id == image.id());

    let missing = service.failure(&format!("{name}:none")).await;
    assert_eq!(missing.0, Code::NotFound, "{}", missing.1);
    assert!(missing.1.contains("not found"), "{}", missing.1);
    let missing = service
        .failure(&format!("{}/none/none:v1", registry.address))
        .await;
    assert_eq!(missing.0, Code::NotFound, "{}", missing.1);
    assert!(missing.1.contains("not found"), "{}", missing.1);

    service.images.remove(&image.id()).await.unwrap();
    service.images.remove(&format!("{name}:v1")).await.unwrap();
    service.images.remove(&format!("{name}:v1")).await.unwrap();
    assert!(service.files().is_empty());
}

#[tokio::test]
async fn an_image_of_one_hundred_layers() {
    let dir = tempfile::tempdir().unwrap();
    let Some(registry) = Registry::start("an_image_of_one_hundred_layers", dir.path(), "", "")
    else {
        return;
    };
    let layers = (0..100_u32).map(|n| {
        let content = n.to_le_bytes();
        Layer::new(Packing::Gzip, &[(&format!("file{n}"), &content)])
    });
    let image = Image::new(layers.collect());
    registry.push("many", "latest", &image).await;
    let service = Service::new();
    let record = service
        .pull(&format!("{}/many", registry.address))
        .await
        .unwrap();
    assert_eq!(record.layers.len(), 100);
    assert_eq!(service.files().len(), 100);
    let (usage, _) = service.images.usage().await.unwrap();
    assert!(
        usage.used_bytes >= 100 * 4096 && usage.inodes == 100,
        "{usage:?}"
    );
}

#[tokio::test]
async fn behind_a_password() {
    let dir = tempfile::tempdir().unwrap();
    let Some(open) = Registry::start("behind_a_password", dir.path(), "", "") else {
        return;
    };
    let image = three_packings();
    open.push("private/app", "1", &image).await;

    let hash = bcrypt::hash("secret", 4)
        .unwrap()
        .replacen("$2b$", "$2y$", 1);
    let passwords = dir.path().join("htpasswd");
    std::fs::write(&passwords, format!("me:{hash}\n")).unwrap();
    let auth = format!(
        "auth:\n  htpasswd:\n    realm: bulkhead-test\n    path: {}\n",
        passwords.display()
    );
    let guarded = Registry::start("behind_a_password", dir.path(), "", &auth).unwrap();
    let reference = format!("{}/private/app:1", guarded.address);
    let service = Service::new();
    let (code, text) = service.failure(&reference).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(text.contains("bulkhead-test"), "{text}");

    let login = |password: &str| PullSecret {
        username: "me".to_owned(),
        password: password.to_owned(),
        ..PullSecret::default()
    };
    let error = service
        .images
        .pull(&reference, Some(&login("wrong")))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    let record = service
        .images
        .pull(&reference, Some(&login("secret")))
        .await
        .unwrap();
    assert_eq!(record.id, image.id());
}

#[tokio::test]
async fn with_an_own_authority() {
    let dir = tempfile::tempdir().unwrap();
    let Some(open) = Registry::start("with_an_own_authority", dir.path(), "", "") else {
        return;
    };
    let image = Image::small(5);
    open.push("app", "1", &image).await;

    // An authority, a server's certificate by it, and one for the client.
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_file = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let issued = |names: &[&str]| {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        (
            params.signed_by(&key, &issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    };
    let at = |name: &str| dir.path().join(name);
    let (certificate, key) = issued(&["127.0.0.1"]);
    std::fs::write(at("server.pem"), certificate).unwrap();
    std::fs::write(at("server.key"), key).unwrap();
    std::fs::write(at("ca.pem"), &authority_file).unwrap();
    let http = format!(
        "  tls:\n    certificate: {}\n    key: {}\n    clientcas:\n      - {}\n",
        at("server.pem").display(),
        at("server.key").display(),
        at("ca.pem").display()
    );
    let tls = Registry::start("with_an_own_authority", dir.path(), &http, "").unwrap();
    let reference = format!("{}/app:1", tls.address);
    let server = format!("server = \"https://{}\"\n", tls.address);

    // Not trusted; then trusted, but it wants to know who is there; then all is well.
    let service = Service::new();
    service.hosts(&tls.address, &server);
    let (code, text) = service.failure(&reference).await;
    assert_eq!(code, Code::Unavailable);
    assert!(text.contains("hosts.toml"), "{text}");
    assert!(
        text.contains("x509: certificate signed by unknown authority"),
        "{text}"
    );

    let certs = service.dir.path().join("certs.d").join(&tls.address);
    std::fs::write(certs.join("ca.pem"), &authority_file).unwrap();
    service.hosts(&tls.address, &format!("{server}ca = \"ca.pem\"\n"));
    assert_eq!(service.failure(&reference).await.0, Code::Unavailable);

    let (certificate, key) = issued(&["client"]);
    std::fs::write(certs.join("me.cert"), certificate).unwrap();
    std::fs::write(certs.join("me.key"), key).unwrap();
    let client = "client = [[\"me.cert\", \"me.key\"]]\n";
    service.hosts(&tls.address, &format!("{server}ca = \"ca.pem\"\n{client}"));
    assert_eq!(service.pull(&reference).await.unwrap().id, image.id());

    // And without looking at the certificate, because the operator says so.
    let service = Service::new();
    service.hosts(&tls.address, &server);
    let certs = service.dir.path().join("certs.d").join(&tls.address);
    let (certificate, key) = issued(&["client"]);
    std::fs::write(certs.join("me.cert"), certificate).unwrap();
    std::fs::write(certs.join("me.key"), key).unwrap();
    service.hosts(
        &tls.address,
        &format!("{server}skip_verify = true\n{client}"),
    );
    assert_eq!(service.pull(&reference).await.unwrap().id, image.id());
}

#[tokio::test]
async fn an_index() {
    // docker-registry wants all images of an index to be there; a server of our own does not.
    let image = three_packings();
    let index = image.index();
    let body = index.clone();
    let server = super::server::Server::with(vec![image.clone()], move |asked| {
        asked.path.ends_with("/manifests/multi").then(|| {
            super::server::Reply::new(200, body.clone()).header("Content-Type", INDEX_TYPE)
        })
    })
    .await;
    let service = Service::new();
    let record = service
        .pull(&format!("{}/test/image:multi", server.address))
        .await
        .unwrap();
    assert_eq!(record.id, image.id());
    let digest = Digest::of(&index);
    assert_eq!(
        record.repo_digests,
        [format!("{}/test/image@{digest}", server.address)]
    );
}
