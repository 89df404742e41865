//! Certificates as people make them with openssl, and a registry that shows them.

use std::{path::Path, process::Command, sync::Arc};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use super::{
    fixture::{Image, Service, skip},
    server::Server,
};

/// Runs openssl in a directory; `false` if there is none here.
fn openssl(test: &str, dir: &Path, args: &[&str]) -> bool {
    let Ok(done) = Command::new("openssl").args(args).current_dir(dir).output() else {
        skip(test, "no openssl here");
        return false;
    };
    assert!(
        done.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    true
}

/// A registry behind TLS, which is forwarded to a plain server: its address, `127.0.0.1:port`.
fn terminate(
    dir: &Path,
    versions: &[&'static rustls::SupportedProtocolVersion],
    plain: &Server,
) -> String {
    use std::io::{Read as _, Write as _};
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read("server.pem"))
        .map(|one| one.unwrap().into_owned())
        .collect();
    let key = PrivateKeyDer::from_pem_slice(&read("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let signing = provider.key_provider.load_private_key(key).unwrap();
    // Not `with_single_cert`, which reads the certificate and so refuses version 1.
    let shown =
        rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, signing));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(shown));
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let target = plain.address.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (config, target) = (Arc::clone(&config), target.clone());
            std::thread::spawn(move || {
                let connection = ServerConnection::new(config).unwrap();
                let mut client = StreamOwned::new(connection, client.unwrap());
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    match client.read(&mut byte) {
                        Ok(1) => head.push(byte[0]),
                        _ => return,
                    }
                }
                let mut server = std::net::TcpStream::connect(target).unwrap();
                server.write_all(&head).unwrap();
                let mut answer = Vec::new();
                let _ = server.read_to_end(&mut answer);
                let _ = client.write_all(&answer);
                client.conn.send_close_notify();
                let _ = client.flush();
            });
        }
    });
    address
}

const BOTH: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// `openssl req -x509`, as in every tutorial.
fn self_signed(test: &str, dir: &Path, more: &[&str]) -> bool {
    let args = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "server.key",
        "-out",
        "server.pem",
        "-subj",
        "/CN=registry",
    ];
    openssl(test, dir, &[&args, more].concat())
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_the_configured_authority() {
    let test = "a_self_signed_certificate_that_is_the_configured_authority";
    let image = Image::small(1);
    let plain = Server::with(vec![image.clone()], |_| None).await;
    let san = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:registry"];
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let dir = tempfile::tempdir().unwrap();
        if !self_signed(test, dir.path(), &san) {
            return;
        }
        let text = Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(dir.path().join("server.pem"))
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&text.stdout).contains("CA:TRUE"));
        let address = terminate(dir.path(), &[version], &plain);
        let reference = format!("{address}/test/image:0");
        let server = format!("server = \"https://{address}\"\n");

        // As hosts.toml has it, in Docker's layout, and not at all.
        let service = Service::new();
        service.hosts(&address, &server);
        assert_eq!(service.failure(&reference).await.0, Code::Unavailable);
        let certs = service.dir.path().join("certs.d").join(&address);
        std::fs::copy(dir.path().join("server.pem"), certs.join("ca.pem")).unwrap();
        service.hosts(&address, &format!("{server}ca = \"ca.pem\"\n"));
        assert_eq!(service.pull(&reference).await.unwrap().id, image.id());

        // Somebody else's certificate is none, however much it looks the same.
        let other = tempfile::tempdir().unwrap();
        self_signed(test, other.path(), &san);
        std::fs::copy(other.path().join("server.pem"), certs.join("ca.pem")).unwrap();
        service.images.remove(&reference).await.unwrap();
        assert_eq!(service.failure(&reference).await.0, Code::Unavailable);
    }
}

#[tokio::test]
async fn the_configured_authoritys_own_certificate_is_still_looked_at() {
    let image = Image::small(2);
    let plain = Server::with(vec![image], |_| None).await;
    let dates = "x509: certificate has expired or is not yet valid";
    for (name, years, words) in [
        (
            "other.example",
            (2020, 2999),
            "x509: certificate is valid for",
        ),
        ("127.0.0.1", (2020, 2021), dates),
        ("127.0.0.1", (2998, 2999), dates),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let certificate = params.self_signed(&key).unwrap().pem();
        std::fs::write(dir.path().join("server.pem"), certificate).unwrap();
        std::fs::write(dir.path().join("server.key"), key.serialize_pem()).unwrap();
        let address = terminate(dir.path(), BOTH, &plain);
        let service = Service::new();
        let certs = service.dir.path().join("certs.d").join(&address);
        std::fs::create_dir_all(&certs).unwrap();
        std::fs::copy(dir.path().join("server.pem"), certs.join("ca.pem")).unwrap();
        service.hosts(
            &address,
            &format!("server = \"https://{address}\"\nca = \"ca.pem\"\n"),
        );
        let (code, text) = service.failure(&format!("{address}/test/image:0")).await;
        assert_eq!(code, Code::Unavailable, "{text}");
        assert!(text.contains(words), "{text}");
    }

    // No TLS at all: Go's servers answer so.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.0 400 Bad Request\r\n\r\nunknown\n";
            // The hello is read, or the end of the connection would be a reset.
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer).await;
        }
    });
    let service = Service::new();
    service.hosts(&address, &format!("server = \"https://{address}\"\n"));
    let (code, text) = service.failure(&format!("{address}/test/image:0")).await;
    assert_eq!(code, Code::Unavailable, "{text}");
    let words = "http: server gave HTTP response to HTTPS client";
    assert!(text.contains(words), "{text}");
}

#[tokio::test]
async fn without_verification_a_certificate_of_version_1_will_do() {
    let test = "without_verification_a_certificate_of_version_1_will_do";
    let image = Image::small(3);
    let plain = Server::with(vec![image.clone()], |_| None).await;
    for (key, more) in [
        ("rsa:2048", ["-newkey", "rsa:2048"].as_slice()),
        (
            "ec",
            &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let request = [
            "req",
            "-new",
            "-nodes",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
            "-subj",
            "/CN=x",
        ];
        if !openssl(test, dir.path(), &[&request, more].concat()) {
            return;
        }
        let sign = [
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-signkey",
            "server.key",
            "-out",
            "server.pem",
        ];
        openssl(test, dir.path(), &sign);
        let text = Command::new("openssl")
            .args(["x509", "-noout", "-text", "-in"])
            .arg(dir.path().join("server.pem"))
            .output()
            .unwrap();
        let version_1 = String::from_utf8_lossy(&text.stdout).contains("Version: 1");
        if !version_1 {
            // From openssl 3.? on `x509 -req` writes version 3.
            skip(test, "this openssl makes no certificates of version 1");
            return;
        }
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let address = terminate(dir.path(), &[version], &plain);
            let reference = format!("{address}/test/image:0");
            let service = Service::new();
            service.hosts(&address, &format!("server = \"https://{address}\"\n"));
            assert_eq!(service.failure(&reference).await.0, Code::Unavailable);
            service.hosts(
                &address,
                &format!("server = \"https://{address}\"\nskip_verify = true\n"),
            );
            let pulled = service.pull(&reference).await;
            assert_eq!(
                pulled.unwrap_or_else(|e| panic!("{key}: {e}")).id,
                image.id()
            );
        }
    }
}
