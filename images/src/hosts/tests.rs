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
        ("dial_timeout = \"5\"", "dial_timeout"),
        ("dial_timeout = \"-1s\"", "dial_timeout"),
        ("dial_timeout = 5", "hosts.toml"),
        ("client = [[\"a\", \"b\", \"c\"]]", "hosts.toml"),
        ("client = [5]", "hosts.toml"),
        ("[header]\nx = [\"a\", 5]", "string"),
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

#[test]
fn what_containerd_reads_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        at(dir.path(), "registry.example", text);
        endpoints(dir.path(), "registry.example").unwrap()
    };
    // No capabilities are all of them, in whatever letters.
    let found = read(
        "[host.\"https://a.example\"]\ncapabilities = []\n[host.\"https://b.example\"]\ncapabilities = [\"Pull\"]",
    );
    assert_eq!(
        found
            .iter()
            .map(|e| (e.resolve, e.pull))
            .collect::<Vec<_>>(),
        [(true, true), (false, true), (true, true)]
    );
    // Without a server the last one is the registry itself, which can do all.
    let found = read("capabilities = [\"pull\"]\nskip_verify = true\n");
    assert_eq!(bases(&found), ["https://registry.example/v2"]);
    assert!(found[0].resolve && found[0].tls.skip_verify && !found[0].mirror);
    assert_eq!(
        bases(&read("server = \"\"")),
        ["https://registry.example/v2"]
    );
    assert!(!read("server = \"https://registry.example\"\ncapabilities = [\"pull\"]")[0].resolve);
    // Files with both parts and pairs beside each other.
    for name in ["both.pem", "c.pem", "k.pem"] {
        fs::write(dir.path().join("registry.example").join(name), name).unwrap();
    }
    let pair = |one: &str, other: &str| (one.as_bytes().to_vec(), other.as_bytes().to_vec());
    for (client, expected) in [
        ("\"both.pem\"", vec![pair("both.pem", "both.pem")]),
        ("[\"both.pem\"]", vec![pair("both.pem", "both.pem")]),
        ("[[\"c.pem\", \"k.pem\"]]", vec![pair("c.pem", "k.pem")]),
        ("[[\"both.pem\", \"\"]]", vec![pair("both.pem", "both.pem")]),
        (
            "[\"both.pem\", [\"c.pem\", \"k.pem\"], \"both.pem\"]",
            vec![
                pair("both.pem", "both.pem"),
                pair("c.pem", "k.pem"),
                pair("both.pem", "both.pem"),
            ],
        ),
    ] {
        assert_eq!(
            read(&format!("client = {client}"))[0].tls.clients,
            expected,
            "{client}"
        );
    }
    // Durations of Go; none is no limit of its own.
    for (text, expected) in [
        ("", None),
        ("0s", None),
        ("1m30s", Some(90_000)),
        ("250ms", Some(250)),
    ] {
        let found = read(&format!(
            "[host.\"https://a.example\"]\ndial_timeout = \"{text}\""
        ));
        let expected = expected.map(std::time::Duration::from_millis);
        assert_eq!(
            (found[0].dial_timeout, found[1].dial_timeout),
            (expected, None),
            "{text}"
        );
    }
    // An empty file is none.
    at(dir.path(), "registry.example", "");
    fs::write(dir.path().join("registry.example/ca.crt"), "authority").unwrap();
    let found = endpoints(dir.path(), "registry.example").unwrap();
    assert_eq!(found[0].tls.authorities, [b"authority".to_vec()]);
}

#[test]
fn a_table_that_names_the_registry_is_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    for (registry, address, base) in [
        (
            "registry.example",
            "https://registry.example",
            "https://registry.example/v2",
        ),
        (
            "registry.example",
            "registry.example",
            "https://registry.example/v2",
        ),
        (
            "registry.example",
            "http://registry.example/v2",
            "http://registry.example/v2",
        ),
        (
            "registry.example:5000",
            "http://registry.example:5000",
            "http://registry.example:5000/v2",
        ),
        (
            "docker.io",
            "https://docker.io",
            "https://registry-1.docker.io/v2",
        ),
        (
            "docker.io",
            "https://registry-1.docker.io",
            "https://registry-1.docker.io/v2",
        ),
        ("docker.io", "index.docker.io", "https://index.docker.io/v2"),
        (
            "registry-1.docker.io",
            "docker.io",
            "https://registry-1.docker.io/v2",
        ),
        ("[::1]:5000", "http://[::1]:5000", "http://[::1]:5000/v2"),
    ] {
        for text in [
            format!("[host.\"{address}\"]"),
            format!("server = \"{address}\""),
        ] {
            at(dir.path(), registry, &text);
            let found = endpoints(dir.path(), registry).unwrap();
            assert_eq!(found[0].base.as_str(), base, "{registry}: {text}");
            assert!(found.iter().all(|e| !e.mirror), "{registry}: {text}");
        }
    }
    at(
        dir.path(),
        "docker.io",
        "[host.\"https://mirror.example\"]\n",
    );
    let found = endpoints(dir.path(), "docker.io").unwrap();
    assert_eq!(bases(&found)[1], "https://registry-1.docker.io/v2");
    assert!(found[0].mirror && !found[1].mirror);
}

#[test]
fn the_directory_of_a_port_in_either_form() {
    let dir = tempfile::tempdir().unwrap();
    for registry in ["example.com:8443", "[::1]:8443"] {
        let host = registry.strip_suffix(":8443").unwrap();
        at(dir.path(), registry, "[host.\"https://colon.example\"]\n");
        let first = |text: &str| {
            let found = endpoints(dir.path(), registry).unwrap();
            assert_eq!(found[0].base.host_str(), Some(text), "{registry}");
        };
        first("colon.example");
        // Of both the one that is a file's name on every system, as in containerd.
        at(
            dir.path(),
            &format!("{host}_8443_"),
            "[host.\"https://score.example\"]\n",
        );
        first("score.example");
    }
}
