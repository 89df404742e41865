//! Images as files: `docker save`'s archives and OCI layouts, good ones and hostile ones.

use std::{convert::Infallible, io::Write as _, sync::Arc};

use bulkhead_images::{ImageRecord, ImagesError, PullSettings, digest::Digest};
use bulkhead_runtime::error::Grpc as _;
use bytes::Bytes;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    fixture::{INDEX_TYPE, Image, Layer, MANIFEST_TYPE, Packing, Service, policy},
    server::Server,
};

/// An archive being made.
#[derive(Clone, Default)]
struct Archive(Vec<(String, Vec<u8>)>);

impl Archive {
    fn file(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.push((name.to_owned(), bytes.into()));
        self
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string())
    }

    fn blob(self, bytes: &[u8]) -> Self {
        self.file(&format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes)
    }

    fn blobs<'a>(self, image: &'a Image) -> Self {
        let all = image.blobs().chain([image.manifest.as_slice()]);
        all.fold(self, |archive, blob: &'a [u8]| archive.blob(blob))
    }

    fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, bytes.as_slice())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }
}

/// An OCI layout with images by name.
fn oci(images: &[(&Image, Value)]) -> Archive {
    let entries: Vec<_> = images
        .iter()
        .map(|(image, annotations)| {
            json!({
                "mediaType": MANIFEST_TYPE, "digest": Digest::of(&image.manifest),
                "size": image.manifest.len(), "annotations": annotations,
            })
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    images.iter().fold(
        Archive::default()
            .json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
            .json("index.json", &index),
        |archive, (image, _)| archive.blobs(image),
    )
}

/// What `docker save` wrote until release 24: layers by directory, unpacked.
fn docker(image: &Image, tars: &[Vec<u8>], tags: &Value) -> Archive {
    let config = format!("{}.json", Digest::of(&image.config).hex());
    let name = |number: usize| format!("layer{number}/layer.tar");
    let mut archive = Archive::default().file(&config, image.config.clone());
    for (number, tar) in tars.iter().enumerate() {
        archive = archive.file(&name(number), tar.clone());
    }
    let layers: Vec<_> = (0..tars.len()).map(name).collect();
    let list = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
    archive.json("manifest.json", &list)
}

async fn import(
    service: &Service,
    archive: &[u8],
    name: Option<&str>,
) -> Result<Vec<Arc<ImageRecord>>, ImagesError> {
    let chunks: Vec<_> = archive
        .chunks(10_000)
        .map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk)))
        .collect();
    let stream = futures::stream::iter(chunks);
    service.images.import(stream, name).await
}

async fn export(service: &Service, images: &[&str]) -> Result<Vec<u8>, ImagesError> {
    let images: Vec<_> = images.iter().map(|&image| image.to_owned()).collect();
    let export = service.images.export(&images)?;
    tokio::task::spawn_blocking(move || {
        let mut archive = Vec::new();
        export.write_to(&mut archive).map(|()| archive)
    })
    .await
    .unwrap()
}

/// Layers with what tars can have: long names, links, holes in the order, trailing bytes.
fn odd_layer(seed: u64) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, size) in [
        ("small", 10),
        ("block", 4096),
        ("more", 4097),
        ("large", 300_001),
        ("empty", 0),
        ("small", 20),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o640);
        header.set_uid(1000);
        let noise = Layer::noise(seed + size, usize::try_from(size).unwrap());
        builder
            .append_data(&mut header, name, noise.as_slice())
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    let long = "d/".repeat(80) + "file";
    builder.append_data(&mut header, long, &b"abc"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "small").unwrap();
    let mut tar = builder.into_inner().unwrap();
    // Builders fill up to 10 KiB.
    tar.extend_from_slice(&[0; 3000]);
    Layer::of_tar(Packing::Gzip, &tar)
}

#[tokio::test]
async fn an_image_goes_to_a_node_without_a_network_and_is_the_same() {
    let images = [
        Image::new(vec![odd_layer(1), odd_layer(2), odd_layer(1)]),
        Image::new(vec![
            odd_layer(2),
            Layer::new(Packing::Zstd, &[("tmp/f", b"x")]),
        ]),
        Image::new(vec![]),
    ];
    let server = Server::with(images.to_vec(), |_| None).await;
    let first = Service::new();
    let names: Vec<_> = (0..images.len())
        .map(|number| server.image(number))
        .collect();
    for name in &names {
        first.pull(name).await.unwrap();
    }
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let archive = export(&first, &all).await.unwrap();
    assert_eq!(
        archive,
        export(&first, &all).await.unwrap(),
        "again the same"
    );
    drop(server);

    let second = Service::new();
    let imported = import(&second, &archive, None).await.unwrap();
    assert_eq!(imported.len(), images.len());
    for (name, image) in names.iter().zip(&images) {
        let here = second.images.find(name).unwrap().unwrap();
        let there = first.images.find(name).unwrap().unwrap();
        assert_eq!(here.id, image.id());
        assert_eq!(here.repo_tags, [name.clone()]);
        assert_eq!(here.config, there.config);
        let diff_ids = |image: &ImageRecord| -> Vec<_> {
            let layers = image.layers.iter();
            layers
                .map(|layer| (layer.diff_id.clone(), layer.implicit_dirs.clone()))
                .collect()
        };
        assert_eq!(diff_ids(&here), diff_ids(&there));
    }
    // And from there on; and as docker's list alone has it, the other being somebody else's.
    let again = export(&second, &all).await.unwrap();
    assert_eq!(again, archive);
    let mut entries = Archive::default();
    let mut tar = tar::Archive::new(archive.as_slice());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut bytes = Vec::new();
        std::io::copy(&mut entry, &mut bytes).unwrap();
        if name != "index.json" {
            entries = entries.file(&name, bytes);
        }
    }
    let third = Service::new();
    let imported = import(&third, &entries.tar(), None).await.unwrap();
    let ids: Vec<_> = imported.iter().map(|image| image.id.clone()).collect();
    assert_eq!(ids, images.each_ref().map(Image::id));

    let missing = export(&third, &["r.example/none:1"]).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(export(&third, &[]).await.is_err());
}

#[tokio::test]
async fn archives_of_every_make() {
    let tars = [1, 2].map(|seed| {
        let mut builder = tar::Builder::new(Vec::new());
        let noise = Layer::noise(seed, 5000);
        let mut header = tar::Header::new_ustar();
        header.set_size(5000);
        builder
            .append_data(&mut header, format!("f{seed}"), noise.as_slice())
            .unwrap();
        builder.into_inner().unwrap()
    });
    let image = Image::new(
        tars.iter()
            .map(|tar| Layer::of_tar(Packing::Gzip, tar))
            .collect(),
    );
    let whole = json!({"io.containerd.image.name": "docker.io/library/app:1",
                       "org.opencontainers.image.ref.name": "1"});
    let podman = json!({"org.opencontainers.image.ref.name": "quay.io/a/app:1"});
    let gzip = |tar: &[u8]| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(tar).unwrap();
        packer.finish().unwrap()
    };
    let docker_tags = json!(["app:1", "quay.io/a/app:2"]);
    let old = docker(&image, &tars, &docker_tags).tar();
    // Docker names some images in the one list, some in the other.
    let blobs = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let both = oci(&[(&image, json!({"org.opencontainers.image.ref.name": "1"}))]).json(
        "manifest.json",
        &json!([{
            "Config": blobs(&image.config), "RepoTags": docker_tags,
            "Layers": image.layers.iter().map(|layer| blobs(&layer.blob)).collect::<Vec<_>>(),
        }]),
    );
    let dotted = Archive(
        oci(&[(&image, whole.clone())])
            .0
            .into_iter()
            .map(|(name, bytes)| (format!("./{name}"), bytes))
            .collect(),
    );
    for (what, archive, tags) in [
        (
            "oci",
            oci(&[(&image, whole.clone())]).tar(),
            vec!["docker.io/library/app:1"],
        ),
        (
            "podman",
            oci(&[(&image, podman)]).tar(),
            vec!["quay.io/a/app:1"],
        ),
        ("no name", oci(&[(&image, json!(null))]).tar(), vec![]),
        (
            "docker",
            old.clone(),
            vec!["docker.io/library/app:1", "quay.io/a/app:2"],
        ),
        (
            "docker | gzip",
            gzip(&old),
            vec!["docker.io/library/app:1", "quay.io/a/app:2"],
        ),
        (
            "docker | zstd",
            zstd::encode_all(&old[..], 1).unwrap(),
            vec!["docker.io/library/app:1", "quay.io/a/app:2"],
        ),
        (
            "both lists",
            both.tar(),
            vec!["docker.io/library/app:1", "quay.io/a/app:2"],
        ),
        ("no tags", docker(&image, &tars, &json!(null)).tar(), vec![]),
        ("tar . ", dotted.tar(), vec!["docker.io/library/app:1"]),
    ] {
        let service = Service::new();
        let imported = import(&service, &archive, None).await;
        let imported = imported.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(imported.len(), 1, "{what}");
        assert_eq!(imported[0].id, image.id(), "{what}");
        assert_eq!(imported[0].repo_tags, tags, "{what}");
        assert_eq!(imported[0].layers.len(), 2, "{what}");
        assert_eq!(service.files().len(), 2, "{what}");

        let service = Service::new();
        let named = import(&service, &archive, Some("r.example/my/app"))
            .await
            .unwrap();
        assert_eq!(named[0].repo_tags, ["r.example/my/app:latest"], "{what}");
        let bad = import(&service, &archive, Some("A B")).await.unwrap_err();
        assert_eq!(bad.code(), Code::InvalidArgument, "{what}");
    }
}

#[tokio::test]
async fn a_layout_of_several_platforms_and_images() {
    let (ours, other) = (Image::small(1), Image::named("arm64", 2));
    // An index inside the layout, as buildx writes it, of which not every variant is there.
    let index = ours.index();
    let list = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": INDEX_TYPE, "digest": Digest::of(&index), "size": index.len(),
        "annotations": {"io.containerd.image.name": "r.example/multi:1"},
    }]});
    let archive = Archive::default()
        .json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))
        .json("index.json", &list)
        .blob(&index)
        .blobs(&ours);
    let service = Service::new();
    let imported = import(&service, &archive.tar(), None).await.unwrap();
    assert_eq!(imported[0].id, ours.id());
    assert_eq!(
        imported[0].repo_digests,
        [format!("r.example/multi@{}", Digest::of(&index))]
    );

    // Entries for other platforms are left out, and one with nothing for this node refused.
    let entry = |image: &Image, architecture: &str| {
        json!({
            "mediaType": MANIFEST_TYPE, "digest": Digest::of(&image.manifest), "size": 1,
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    let layout = |entries: Value| {
        Archive::default()
            .json(
                "index.json",
                &json!({"schemaVersion": 2, "manifests": entries}),
            )
            .blobs(&ours)
            .blobs(&other)
            .tar()
    };
    let mixed = layout(json!([entry(&other, "arm64"), entry(&ours, "amd64")]));
    assert_eq!(import(&service, &mixed, None).await.unwrap().len(), 1);
    let foreign = layout(json!([entry(&other, "arm64")]));
    let error = import(&service, &foreign, None).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.status().message().contains("linux/arm64"), "{error}");

    // Two images in one archive: both, and no common name.
    let two = oci(&[
        (&ours, json!({"io.containerd.image.name": "r.example/a:1"})),
        (&other, json!({"io.containerd.image.name": "r.example/b:1"})),
    ]);
    let service = Service::new();
    assert_eq!(import(&service, &two.tar(), None).await.unwrap().len(), 2);
    let error = import(&service, &two.tar(), Some("r.example/c:1"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

#[tokio::test]
async fn hostile_archives_are_checked_as_registries_answers_are() {
    let image = Image::small(1);
    let good = oci(&[(&image, json!({"io.containerd.image.name": "r.example/a:1"}))]);
    let spoiled = |blob: &[u8]| {
        let name = format!("blobs/sha256/{}", Digest::of(blob).hex());
        let mut archive = good.clone();
        for (other, bytes) in &mut archive.0 {
            if *other == name {
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
            }
        }
        archive.tar()
    };
    let without = |part: &str| {
        let kept = good.0.iter().filter(|(name, _)| !name.contains(part));
        Archive(kept.cloned().collect()).tar()
    };
    let hex = |bytes: &[u8]| Digest::of(bytes).hex().to_owned();
    let manifest = |config: &str, layers: Value| {
        Archive::default()
            .file("c", image.config.clone())
            .file("l", image.layers[0].blob.clone())
            .json(
                "manifest.json",
                &json!([{"Config": config, "Layers": layers, "RepoTags": null}]),
            )
            .tar()
    };
    let lying = Image::with_diff_ids(image.layers.clone(), vec![Digest::of(b"other")]);
    let cut = good.tar();
    let cases: Vec<(&str, Vec<u8>, &[Code])> = vec![
        ("another config", spoiled(&image.config), &[Code::DataLoss]),
        (
            "another layer",
            spoiled(&image.layers[0].blob),
            &[Code::DataLoss],
        ),
        (
            "another manifest",
            spoiled(&image.manifest),
            &[Code::DataLoss],
        ),
        (
            "no layer",
            without(&hex(&image.layers[0].blob)),
            &[Code::DataLoss],
        ),
        ("no config", without(&hex(&image.config)), &[Code::DataLoss]),
        ("no index", without("index.json"), &[Code::InvalidArgument]),
        (
            "no tar",
            b"this is not a tar at all".repeat(100),
            &[Code::InvalidArgument],
        ),
        ("nothing", Vec::new(), &[Code::InvalidArgument]),
        (
            "cut",
            cut[..cut.len() / 2].to_vec(),
            &[Code::InvalidArgument, Code::DataLoss],
        ),
        (
            "another diff_id",
            oci(&[(&lying, json!(null))]).tar(),
            &[Code::DataLoss],
        ),
        (
            "a config elsewhere",
            manifest("../../../etc/passwd", json!(["l"])),
            &[Code::DataLoss],
        ),
        (
            "a layer elsewhere",
            manifest("c", json!(["/etc/passwd"])),
            &[Code::DataLoss],
        ),
        (
            "too few layers",
            manifest("c", json!([])),
            &[Code::FailedPrecondition],
        ),
        (
            "too many layers",
            manifest("c", json!(["l", "l"])),
            &[Code::FailedPrecondition],
        ),
        (
            "a list that is none",
            Archive::default().file("manifest.json", "{}").tar(),
            &[Code::InvalidArgument],
        ),
        (
            "a name that is none",
            oci(&[(&image, json!({"io.containerd.image.name": "A B"}))]).tar(),
            &[Code::InvalidArgument],
        ),
    ];
    for (what, archive, codes) in cases {
        let service = Service::new();
        let error = match import(&service, &archive, None).await {
            Ok(_) => panic!("{what} was imported"),
            Err(error) => error,
        };
        assert!(
            codes.contains(&error.code()),
            "{what}: {:?} {error}",
            error.code()
        );
        service.assert_nothing_left();
    }

    // Links that go in circles, or out.
    for (from, to) in [("l", "l"), ("l", "../../../../etc/passwd")] {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, from, to).unwrap();
        for (name, bytes) in [
            ("c", image.config.clone()),
            (
                "manifest.json",
                json!([{"Config": "c", "Layers": ["l"]}]).to_string().into(),
            ),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder
                .append_data(&mut header, name, bytes.as_slice())
                .unwrap();
        }
        let archive = builder.into_inner().unwrap();
        let error = import(&Service::new(), &archive, None).await.unwrap_err();
        assert_eq!(error.code(), Code::DataLoss, "{to}: {error}");
    }

    // One that is larger than images may be, packed or not.
    let settings = PullSettings {
        max_image_bytes: 100_000,
        ..PullSettings::default()
    };
    let bomb = Archive::default()
        .file("index.json", vec![b' '; 1 << 20])
        .tar();
    let packed = zstd::encode_all(&bomb[..], 1).unwrap();
    for archive in [bomb, packed] {
        let service = Service::with(policy(), settings.clone());
        let error = import(&service, &archive, None).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        service.assert_nothing_left();
    }
}

#[tokio::test]
async fn an_archive_that_breaks_off_is_no_archive() {
    let image = Image::small(1);
    let archive = oci(&[(&image, json!(null))]).tar();
    let service = Service::new();
    let pieces = vec![
        Ok(Bytes::from(archive)),
        Err(std::io::Error::other("the client has gone")),
    ];
    let error = service
        .images
        .import(futures::stream::iter(pieces), None)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert!(error.status().message().contains("the client has gone"));
    service.assert_nothing_left();
}

#[tokio::test]
async fn a_damaged_layer_is_not_exported() {
    let image = Image::small(1);
    let server = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    service.pull(&server.image(0)).await.unwrap();
    let path = service.files().remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let noise = Layer::noise(1, 20_000);
    let at = bytes
        .windows(64)
        .position(|part| part == &noise[..64])
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = export(&service, &[&server.image(0)]).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error}");
}

#[tokio::test]
async fn what_is_being_exported_stays_until_it_is_written() {
    let image = Image::small(1);
    let server = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    service.pull(&server.image(0)).await.unwrap();
    let export = service.images.export(&[server.image(0)]).unwrap();
    service.images.remove(&server.image(0)).await.unwrap();
    assert_eq!(service.files().len(), 1);
    let export = tokio::task::spawn_blocking(move || {
        let mut archive = Vec::new();
        export.write_to(&mut archive).unwrap();
        export
    })
    .await
    .unwrap();
    drop(export);
    super::sharing::wait_until(|| service.files().is_empty()).await;
}
