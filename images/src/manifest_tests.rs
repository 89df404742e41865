use serde_json::json;

use super::*;

fn digest(n: u8) -> String {
    Digest::of(&[n]).to_string()
}

fn layer(n: u8) -> serde_json::Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(n), "size": 10})
}

fn image(layers: &[serde_json::Value]) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(0), "size": 9},
        "layers": layers,
    })
}

fn parse(value: &serde_json::Value) -> Result<Manifest, ManifestError> {
    parse_manifest(value.to_string().as_bytes(), "")
}

#[test]
fn an_image() {
    let Manifest::Image { config, layers } = parse(&image(&[layer(1), layer(2)])).unwrap() else {
        panic!("an index?")
    };
    assert_eq!(config.size, 9);
    assert_eq!(layers.len(), 2);
    // Docker's types, told by the header only.
    let mut docker = image(&[json!({
        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "digest": digest(1), "size": 10,
    })]);
    docker.as_object_mut().unwrap().remove("mediaType");
    let bytes = docker.to_string();
    let header = "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8";
    parse_manifest(bytes.as_bytes(), header).unwrap();
    parse_manifest(bytes.as_bytes(), "").unwrap();
}

fn index(entries: &[(&str, &str, &str)]) -> serde_json::Value {
    let manifests: Vec<_> = entries
        .iter()
        .zip(0..)
        .map(|((os, architecture, variant), n)| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(n), "size": 5,
                "platform": {"os": os, "architecture": architecture, "variant": variant},
            })
        })
        .collect();
    json!({"schemaVersion": 2, "manifests": manifests})
}

#[test]
fn the_platform_of_an_index() {
    let chosen = |entries: &[(&str, &str, &str)]| parse(&index(entries));
    let number = |n| Manifest::Index(vec![Digest::of(&[n])]);
    assert_eq!(
        chosen(&[
            ("linux", "arm64", "v8"),
            ("unknown", "unknown", ""),
            ("linux", "amd64", "")
        ])
        .unwrap(),
        number(2)
    );
    assert_eq!(
        chosen(&[("linux", "amd64", "v3"), ("linux", "amd64", "v2")]).unwrap(),
        number(1)
    );
    let error = chosen(&[("linux", "arm64", ""), ("windows", "amd64", "")]).unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");
    assert!(matches!(error, ManifestError::Platform { .. }));
    assert!(matches!(chosen(&[]), Err(ManifestError::Platform { .. })));
    // As people write it, and with parts left out.
    for ours in [
        ("linux", "x86_64", ""),
        ("Linux", "X86-64", "v1"),
        ("", "amd64", ""),
    ] {
        let found = chosen(&[("linux", "aarch64", ""), ("linux", "armhf", ""), ours]);
        assert_eq!(found.unwrap(), number(2), "{ours:?}");
    }
    let error = chosen(&[("linux", "aarch64", "8"), ("linux", "armhf", "")]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains(r#""linux/arm64", "linux/arm/v7""#),
        "{error}"
    );
    let bare = |platforms: &[serde_json::Value]| {
        let entries = platforms.iter().zip(7..);
        let entries: Vec<_> = entries
            .map(|(platform, n)| json!({"digest": digest(n), "platform": platform}))
            .collect();
        parse(&json!({"manifests": entries})).unwrap()
    };
    assert_eq!(bare(&[json!(null)]), number(7));
    assert_eq!(bare(&[json!({})]), number(7));
    assert_eq!(
        bare(&[json!({"os": null, "architecture": null})]),
        number(7)
    );
    let unnamed = || json!({"os": "", "architecture": ""});
    let two = Manifest::Index(vec![Digest::of(&[7]), Digest::of(&[8])]);
    assert_eq!(bare(&[unnamed(), unnamed()]), two);
    let named = json!({"os": "linux", "architecture": "amd64"});
    assert_eq!(bare(&[unnamed(), named]), number(8));
}

#[test]
fn what_is_refused() {
    let many: Vec<_> = (0..=500_u32).map(|_| layer(1)).collect();
    for (what, value) in [
        ("schema 1", json!({"schemaVersion": 1, "fsLayers": []})),
        (
            "artifact",
            json!({"mediaType": "application/vnd.cncf.helm.chart", "layers": []}),
        ),
        (
            "bad digest",
            image(&[
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:../..", "size": 1}),
            ]),
        ),
        (
            "negative",
            image(&[
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(1), "size": -1}),
            ]),
        ),
        (
            "absurd",
            image(&[
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(1), "size": u64::MAX}),
            ]),
        ),
        (
            "encrypted",
            image(&[
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": digest(1), "size": 1}),
            ]),
        ),
        ("too many", image(&many)),
        ("a list", json!([1, 2])),
        ("config", json!({"schemaVersion": 2, "layers": [layer(1)]})),
    ] {
        assert!(parse(&value).is_err(), "{what}");
    }
    assert!(parse_manifest(b"<html>", "text/html").is_err());
    assert!(parse_manifest(b"", "").is_err());
}

#[test]
fn a_configuration_with_nulls_and_without() {
    let docker = json!({
        "architecture": "amd64", "os": "linux",
        "config": {
            "User": "www-data:1004", "Env": ["A=b"], "Entrypoint": null, "Cmd": ["/bin/sh"],
            "WorkingDir": "/srv", "Labels": null, "StopSignal": "SIGINT",
            "Volumes": {"/data": {}}, "ExposedPorts": {"80/tcp": {}}, "OnBuild": null,
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(1)]},
        "history": [{"created_by": "x"}],
    });
    let ConfigFile {
        config, diff_ids, ..
    } = parse_config(docker.to_string().as_bytes()).unwrap();
    assert_eq!(diff_ids, [Digest::of(&[1])]);
    assert_eq!(config.user, "www-data:1004");
    assert_eq!(config.volumes, ["/data"]);
    assert_eq!(config.stop_signal, "SIGINT");
    assert!(config.entrypoint.is_empty());

    let least = json!({"rootfs": {"diff_ids": []}});
    let least = parse_config(least.to_string().as_bytes()).unwrap();
    assert_eq!(least.config, ImageConfig::default());
    assert_eq!(least.platform.distance(), Some(0), "nothing said");
    assert_eq!(parse_config(b"{}").unwrap().diff_ids, []);
    assert!(parse_config(b"5").is_err());
}

#[test]
fn what_a_configuration_says_it_is_for() {
    let read = |os: &str, architecture: &str| {
        let file = json!({"os": os, "architecture": architecture, "rootfs": {}});
        parse_config(file.to_string().as_bytes())
    };
    // Told, and taken.
    let arm = read("linux", "aarch64").unwrap().platform;
    assert_eq!(
        (arm.distance(), arm.to_string().as_str()),
        (None, "linux/arm64")
    );
    for ours in ["", "amd64", "x86_64", "X86-64"] {
        assert_eq!(read("linux", ours).unwrap().platform.distance(), Some(0));
    }
    // Nothing of it could run.
    let error = read("windows", "amd64").unwrap_err();
    assert!(matches!(error, ManifestError::Platform { .. }), "{error}");
}

#[test]
fn command_lines_and_volumes_of_every_shape() {
    let read = |config: serde_json::Value| {
        let file = json!({"config": config, "rootfs": {}}).to_string();
        parse_config(file.as_bytes()).map(|file| file.config)
    };
    for (shape, expected) in [
        (json!(null), vec![]),
        (json!([]), vec![]),
        (json!([""]), vec![""]),
        (json!("/bin/sh -c"), vec!["/bin/sh -c"]),
        (json!(["a", "b"]), vec!["a", "b"]),
    ] {
        let config = read(json!({"Entrypoint": shape, "Cmd": shape})).unwrap();
        assert_eq!(
            (config.entrypoint, config.cmd),
            (
                expected.clone().into_iter().map(str::to_owned).collect(),
                expected.into_iter().map(str::to_owned).collect()
            )
        );
    }
    assert!(read(json!({"Cmd": {"a": 1}})).is_err());
    for none in [json!(null), json!({})] {
        assert!(read(json!({"Volumes": none})).unwrap().volumes.is_empty());
    }
    let odd = read(json!({"Volumes": {"/a/../b": null, "data": {}, "": {"x": 1}}})).unwrap();
    assert_eq!(odd.volumes, ["", "/a/../b", "data"]);
    let many: serde_json::Map<_, _> = (0..=1024).map(|n| (format!("/{n}"), json!({}))).collect();
    assert!(matches!(
        read(json!({"Volumes": many})),
        Err(ManifestError::TooMany { .. })
    ));
}

#[test]
fn layers_that_come_twice_stay_at_the_top() {
    let blob = |n: u8| Blob {
        digest: Digest::of(&[n, n]),
        size: 1,
    };
    let id = |n: u8| Digest::of(&[n]);
    let pairs = pair_layers(
        vec![blob(1), blob(2), blob(1)],
        vec![id(1), id(2), id(1)],
        10,
    )
    .unwrap();
    assert_eq!(pairs, [(id(2), blob(2)), (id(1), blob(1))]);
    assert!(matches!(
        pair_layers(vec![blob(1)], vec![], 10),
        Err(ManifestError::LayerCount { .. })
    ));
    assert!(matches!(
        pair_layers(vec![blob(1), blob(2)], vec![id(1), id(2)], 1),
        Err(ManifestError::TooMany { .. })
    ));
    let twin: Digest = format!("{}{}", &id(1).to_string()[..30], "0".repeat(41))
        .parse()
        .unwrap();
    assert!(matches!(
        pair_layers(vec![blob(1), blob(2)], vec![id(1), twin], 10),
        Err(ManifestError::Alike { .. })
    ));
}

proptest::proptest! {
    #[test]
    fn parsing_is_total(bytes in proptest::collection::vec(0_u8.., 0..200)) {
        let _ = parse_manifest(&bytes, "");
        let _ = parse_config(&bytes);
    }
}

#[test]
fn null_is_the_empty_value_wherever_it_stands() {
    let nothing = json!(null);
    let mut null_layers = image(&[]);
    null_layers["layers"] = nothing.clone();
    for none in [image(&[]), null_layers] {
        let Manifest::Image { layers, .. } = parse(&none).unwrap() else {
            panic!("an index?")
        };
        assert!(layers.is_empty());
    }
    let mut odd = image(&[json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(1),
        "size": null, "annotations": null, "urls": null, "platform": null,
    })]);
    for key in ["annotations", "subject", "artifactType", "mediaType"] {
        odd[key] = nothing.clone();
    }
    let Manifest::Image { layers, .. } = parse(&odd).unwrap() else {
        panic!("an index?")
    };
    assert_eq!((layers.len(), layers[0].size), (1, 0));
    // An empty digest is none.
    for bad in [
        image(std::slice::from_ref(&nothing)),
        image(&[json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": null})]),
    ] {
        assert!(parse(&bad).is_err(), "{bad}");
    }
    let mut no_config = image(&[layer(1)]);
    no_config["config"] = nothing.clone();
    assert!(matches!(parse(&no_config), Err(ManifestError::NoConfig)));

    let platform =
        json!({"os": "linux", "architecture": "amd64", "variant": null, "os.features": null});
    let index =
        json!({"manifests": [null, {"digest": digest(3), "size": null, "platform": platform}]});
    assert_eq!(
        parse(&index).unwrap(),
        Manifest::Index(vec![Digest::of(&[3])])
    );
    assert!(matches!(
        parse(&json!({"manifests": null, "mediaType": "application/vnd.oci.image.index.v1+json"})),
        Err(ManifestError::Platform { .. })
    ));

    let file = json!({
        "architecture": null, "os": null, "variant": null, "created": null, "history": null,
        "rootfs": null,
        "config": {
            "User": null, "Env": [null, "A=b"], "Entrypoint": [null, "x"], "Cmd": null,
            "WorkingDir": null, "Labels": {"a": null, "b": "c"}, "StopSignal": null,
            "Volumes": {"/v": null}, "Healthcheck": null, "ExposedPorts": null,
        },
    });
    let file = parse_config(file.to_string().as_bytes()).unwrap();
    assert!(file.diff_ids.is_empty());
    assert_eq!(file.config.env, ["", "A=b"]);
    assert_eq!(file.config.entrypoint, ["", "x"]);
    assert_eq!(file.config.labels["a"], "");
    assert_eq!(file.config.labels["b"], "c");
    for file in [
        json!({"config": null}),
        json!({"rootfs": {"diff_ids": null, "type": null}}),
    ] {
        let file = parse_config(file.to_string().as_bytes()).unwrap();
        assert_eq!(file.config, ImageConfig::default());
    }
    let file = json!({"rootfs": {"diff_ids": [null]}});
    assert!(parse_config(file.to_string().as_bytes()).is_err());
}
