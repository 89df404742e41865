use super::*;

fn at(dir: &Path, host: &str, text: &str) -> PathBuf {
    let dir = dir.join(host);
    fs::create_dir_all(&dir).unwrap();
    let file = dir.join("hosts.toml");
    fs::write(&file, text).unwrap();
    file
}

fn bases(endpoints: &[Endpoint]) -> Vec<&str> {
    endpoints
        .iter()
        .map(|endpoint| endpoint.base.as_str())
        .collect()
}

#[test]
fn without_any_file() {
    let dir = tempfile::tempdir().unwrap();
    for (registry, base) in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("registry.k8s.io", "https://registry.k8s.io/v2"),
        ("example.com:8443", "https://example.com:8443/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2"),
        ("localhost:443", "https://localhost/v2"),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
    ] {
        assert_eq!(bases(&endpoints(dir.path(), registry).unwrap()), [base]);
    }
    // No such directory at all is the same as an empty one.
    assert_eq!(
        endpoints(Path::new("/nowhere/at/all"), "a.example")
            .unwrap()
            .len(),
        1
    );
    // A port that is none must not panic.
    assert_eq!(endpoints(dir.path(), "example.com:99999").unwrap().len(), 1);
}

#[test]
fn mirrors_in_the_order_of_the_file_then_the_server() {
    let dir = tempfile::tempdir().unwrap();
    at(
        dir.path(),
        "registry.k8s.io",
        r#"
        server = "https://registry.k8s.io"
        [host."http://127.0.0.1:5000/v2/registry.k8s.io"]
          capabilities = ["pull", "resolve"]
          override_path = true
        [host."https://a.mirror.example"]
          capabilities = ["pull"]
          skip_verify = true
          [host."https://a.mirror.example".header]
            x-key = "secret"
            x-more = ["one", "two"]
        [host."b.mirror.example/proxy"]
        "#,
    );
    let found = endpoints(dir.path(), "registry.k8s.io").unwrap();
    assert_eq!(
        bases(&found),
        [
            "http://127.0.0.1:5000/v2/registry.k8s.io",
            "https://a.mirror.example/v2",
            "https://b.mirror.example/proxy/v2",
            "https://registry.k8s.io/v2",
        ]
    );
    assert_eq!(
        found.iter().map(|e| e.mirror).collect::<Vec<_>>(),
        [true, true, true, false]
    );
    assert_eq!(
        found.iter().map(|e| e.resolve).collect::<Vec<_>>(),
        [true, false, true, true]
    );
    assert!(found[1].tls.skip_verify && found[1].pull);
    assert_eq!(found[1].headers.get_all("x-more").iter().count(), 2);
    assert!(!format!("{:?}", found[1].headers).contains("secret"));
}

#[test]
fn the_default_directory_and_ports() {
    let dir = tempfile::tempdir().unwrap();
    at(
        dir.path(),
        "_default",
        "[host.\"http://mirror.example:5000\"]\n",
    );
    at(
        dir.path(),
        "example.com_8443_",
        "server = \"http://example.com:8443\"\n",
    );
    assert_eq!(
        bases(&endpoints(dir.path(), "quay.io").unwrap()),
        ["http://mirror.example:5000/v2", "https://quay.io/v2"]
    );
    assert_eq!(
        bases(&endpoints(dir.path(), "example.com:8443").unwrap()),
        ["http://example.com:8443/v2"]
    );
}

#[test]
fn certificates_are_read_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    at(
        dir.path(),
        "example.com",
        "ca = [\"one.pem\", \"two.pem\"]\nclient = [[\"c.pem\", \"k.pem\"]]\n",
    );
    let missing = endpoints(dir.path(), "example.com").unwrap_err();
    assert!(matches!(missing, HostsError::Read { .. }), "{missing}");
    for name in ["one.pem", "two.pem", "c.pem", "k.pem"] {
        fs::write(dir.path().join("example.com").join(name), name).unwrap();
    }
    let found = endpoints(dir.path(), "example.com").unwrap();
    assert_eq!(
        found[0].tls.authorities,
        [b"one.pem".to_vec(), b"two.pem".to_vec()]
    );
    assert_eq!(
        found[0].tls.clients,
        [(b"c.pem".to_vec(), b"k.pem".to_vec())]
    );

    // Docker's layout, without a hosts.toml.
    let docker = dir.path().join("docker.example");
    fs::create_dir(&docker).unwrap();
    for name in ["ca.crt", "me.cert", "me.key"] {
        fs::write(docker.join(name), name).unwrap();
    }
    let found = endpoints(dir.path(), "docker.example").unwrap();
    assert_eq!(found[0].tls.authorities, [b"ca.crt".to_vec()]);
    assert_eq!(
        found[0].tls.clients,
        [(b"me.cert".to_vec(), b"me.key".to_vec())]
    );
}

#[test]
fn bad_files_are_errors_that_name_the_file() {
    for (text, hint) in [
        ("server = 5", "hosts.toml"),
        ("this is not toml", "hosts.toml"),
        ("server = \"ftp://example.com\"", "http(s)://"),
        ("server = \"https://user:pass@example.com\"", "http(s)://"),
        ("[host.\"https://\"]", "http(s)://"),
        (
            "[host.\"https://a.example\"]\ncapabilities = [\"fly\"]",
            "\"pull\"",
        ),
        (
            "[host.\"https://a.example\"]\nskip_verify = \"yes\"",
            "hosts.toml",
        ),
        (
            "[host.\"https://a.example\".header]\n\"b d\" = \"x\"",
            "HTTP header",
        ),
        ("ca = \"none.pem\"", "none.pem"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        at(dir.path(), "example.com", text);
        let error = endpoints(dir.path(), "example.com")
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{text}: {error}");
        assert!(error.contains("example.com"), "{text}: {error}");
    }
}
