//! Which image of an index is taken, and what its configuration may say of its platform.

use bulkhead_images::digest::Digest;
use serde_json::{Value, json};
use tonic::Code;

use super::{
    fixture::{INDEX_TYPE, Image, MANIFEST_TYPE, Service},
    server::{Reply, Server},
};

/// A server that has these, and an index of them in the place of the first.
async fn indexed(images: Vec<Image>, platform: impl Fn(usize) -> Value) -> Server {
    let entries: Vec<_> = images
        .iter()
        .enumerate()
        .map(|(number, image)| {
            json!({
                "mediaType": MANIFEST_TYPE, "digest": Digest::of(&image.manifest),
                "size": image.manifest.len(), "platform": platform(number),
            })
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
    let index = index.to_string().into_bytes();
    let digest = Digest::of(&index).to_string();
    Server::with(images, move |asked| {
        let asked_for = asked.path.ends_with("/manifests/0") || asked.path.ends_with(&digest);
        asked_for.then(|| Reply::new(200, index.clone()).header("Content-Type", INDEX_TYPE))
    })
    .await
}

async fn pulled(server: &Server) -> String {
    let service = Service::new();
    service.pull(&server.image(0)).await.unwrap().id.clone()
}

#[tokio::test]
async fn an_image_alone_is_taken_whatever_it_says() {
    for architecture in ["amd64", "x86_64", "", "arm64", "aarch64", "nonsense"] {
        let image = Image::named(architecture, 1);
        let server = Server::with(vec![image.clone()], |_| None).await;
        assert_eq!(pulled(&server).await, image.id(), "{architecture}");
    }
}

#[tokio::test]
async fn the_index_is_believed_and_not_the_configuration() {
    let (one, two) = (Image::named("amd64", 1), Image::named("arm64", 2));
    for ours in ["amd64", "x86_64", "X86-64"] {
        let platform = |number| {
            let architecture = if number == 0 { "aarch64" } else { ours };
            json!({"os": "linux", "architecture": architecture})
        };
        let server = indexed(vec![one.clone(), two.clone()], platform).await;
        assert_eq!(pulled(&server).await, two.id(), "{ours}");
    }
}

#[tokio::test]
async fn where_the_index_says_nothing_the_configurations_do() {
    let (arm, ours) = (Image::named("arm64", 1), Image::named("x86_64", 2));
    for nothing in [
        Value::Null,
        json!({}),
        json!({"os": "", "architecture": ""}),
    ] {
        let server = indexed(vec![arm.clone()], |_| nothing.clone()).await;
        assert_eq!(pulled(&server).await, arm.id(), "alone");
        let server = indexed(vec![arm.clone(), ours.clone()], |_| nothing.clone()).await;
        assert_eq!(pulled(&server).await, ours.id(), "among others");
    }
    let others = vec![arm, Image::named("riscv64", 3)];
    let server = indexed(others, |_| Value::Null).await;
    let (code, text) = Service::new().failure(&server.image(0)).await;
    assert_eq!(code, Code::NotFound, "{text}");
    assert!(text.contains(r#""linux/arm64", "linux/riscv64""#), "{text}");
}
