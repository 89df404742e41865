//! Pulls that share work, are given up, or are tried again; and a full disk.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bulkhead_images::{PullSettings, RetryPolicy, pull::LayerState};
use futures::future::join_all;
use tonic::Code;

use super::{
    fixture::{Image, Layer, PATIENCE, Packing, Service, files, open, policy, skip},
    server::{Reply, Server},
};

fn layer(seed: u64) -> Layer {
    let noise = Layer::noise(seed, 300_000);
    Layer::new(Packing::Gzip, &[("noise", &noise)])
}

#[tokio::test]
async fn pulls_of_one_image_are_one_pull() {
    let image = Image::new(vec![layer(1), layer(2)]);
    let server = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    let reference = server.image(0);
    let pulls = (0..8).map(|_| service.pull(&reference));
    for record in join_all(pulls).await {
        assert_eq!(record.unwrap().id, image.id());
    }
    assert_eq!(server.count("/manifests/"), 1);
    assert_eq!(server.count("/blobs/"), 3);
    // Pulled again: the tag is asked about, nothing is fetched.
    let again = service.pull(&reference).await.unwrap();
    assert_eq!(again.id, image.id());
    assert_eq!(server.asked().last().unwrap().method, "HEAD");
    assert_eq!(server.count("/manifests/"), 2);
    assert_eq!(server.count("/blobs/"), 3);
    assert_eq!(service.images.list().len(), 1);
}

#[tokio::test]
async fn images_share_layers() {
    let (one, two) = (
        Image::new(vec![layer(1), layer(2)]),
        Image::new(vec![layer(1), layer(3), layer(1)]),
    );
    let server = Server::with(vec![one.clone(), two], |_| None).await;
    let service = Service::new();
    let (first, second) = (server.image(0), server.image(1));
    let (first, second) = tokio::join!(service.pull(&first), service.pull(&second));
    first.unwrap();
    // A layer that comes twice is one disk, the upper one.
    assert_eq!(second.unwrap().layers.len(), 2);
    assert_eq!(server.count(&one.layers[0].digest().to_string()), 1);
    assert_eq!(service.files().len(), 3);
    service.images.remove(&server.image(0)).await.unwrap();
    assert_eq!(service.files().len(), 2);
    service.images.remove(&server.image(1)).await.unwrap();
    assert!(service.files().is_empty());
}

/// For what is held back on purpose: a silent connection is given up after a third of this.
fn patient() -> RetryPolicy {
    RetryPolicy {
        stall_timeout: Duration::from_secs(9),
        ..policy()
    }
}

/// A server that keeps a layer back until it is told.
async fn holding_back(image: &Image, held: usize) -> (Server, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let (gate, path) = (Arc::clone(&open), image.layers[held].digest().to_string());
    let server = Server::with(vec![image.clone()], move |asked| {
        let shut = asked.path.contains(&path) && !gate.load(Ordering::SeqCst);
        shut.then(|| Reply {
            silent: true,
            ..Reply::new(200, "")
        })
    })
    .await;
    (server, open)
}

#[tokio::test]
async fn a_pull_lives_while_anybody_waits() {
    let image = Image::new(vec![layer(1), layer(2)]);
    let (server, gate) = holding_back(&image, 1).await;
    let service = Service::with(patient(), PullSettings::default());
    let reference = server.image(0);
    let path = image.layers[1].digest().to_string();

    let mut first = Box::pin(service.pull(&reference));
    let second = service.pull(&reference);
    {
        let asked = async { wait_until(|| server.count(&path) > 0).await };
        futures::pin_mut!(asked);
        let done = futures::future::select(&mut first, asked).await;
        assert!(matches!(done, futures::future::Either::Right(_)));
    }
    // The first one is here and drives the work; the second has joined when it was polled.
    let mut second = Box::pin(second);
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    gate.store(true, Ordering::SeqCst);
    assert_eq!(second.await.unwrap().id, image.id());
    assert_eq!(server.count("/manifests/"), 1);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_ends_and_is_resumed() {
    let image = Image::new(vec![layer(1), layer(2)]);
    let (server, gate) = holding_back(&image, 1).await;
    let service = Service::with(patient(), PullSettings::default());
    let reference = server.image(0);
    let path = image.layers[1].digest().to_string();
    {
        let pull = Box::pin(service.pull(&reference));
        let both = async {
            wait_until(|| server.count(&path) > 0).await;
            wait_until(|| {
                let layers = service.images.progress(&reference).unwrap_or_default();
                layers
                    .first()
                    .is_some_and(|layer| layer.state == LayerState::Done)
            })
            .await;
        };
        let done = futures::future::select(pull, Box::pin(both)).await;
        assert!(matches!(done, futures::future::Either::Right(_)));
        // Dropped here: the caller has gone.
    }
    assert!(service.images.list().is_empty());
    wait_until(|| service.files().len() == 1).await;
    service.assert_nothing_left();

    gate.store(true, Ordering::SeqCst);
    let first = image.layers[0].digest().to_string();
    let Service { images, dir } = service;
    // The next daemon goes on with it.
    drop(images);
    let images = open(
        dir.path(),
        dir.path().join("layers"),
        policy(),
        PullSettings::default(),
    );
    images.pull(&reference, None).await.unwrap();
    assert_eq!(
        server.count(&first),
        1,
        "the layer that was done is not fetched again"
    );
    assert_eq!(images.list().len(), 1);
}

#[tokio::test]
async fn a_failed_pull_keeps_what_is_done() {
    let image = Image::new(vec![layer(1), layer(2)]);
    let broken = Arc::new(AtomicBool::new(true));
    let (gate, path) = (Arc::clone(&broken), image.layers[1].digest().to_string());
    let server = Server::with(vec![image.clone()], move |asked| {
        (asked.path.contains(&path) && gate.load(Ordering::SeqCst)).then(|| Reply::new(500, ""))
    })
    .await;
    let settings = PullSettings {
        parallel_layers: 1,
        ..PullSettings::default()
    };
    let service = Service::with(policy(), settings);
    assert_eq!(service.failure(&server.image(0)).await.0, Code::Unavailable);
    service.assert_nothing_left();
    assert_eq!(service.files().len(), 1);
    broken.store(false, Ordering::SeqCst);
    service.pull(&server.image(0)).await.unwrap();
    assert_eq!(server.count(&image.layers[0].digest().to_string()), 1);
}

#[tokio::test]
async fn small_layers_do_not_wait_for_a_large_one_beside_them() {
    let layers: Vec<_> = (0..11).map(layer).collect();
    for held in [0, 5, 10] {
        let image = Image::new(layers.clone());
        // Asked for again and again, for as long as the others take.
        let gate = Arc::new(AtomicBool::new(false));
        let (open, path) = (Arc::clone(&gate), image.layers[held].digest().to_string());
        let server = Server::with(vec![image.clone()], move |asked| {
            let shut = asked.path.contains(&path) && !open.load(Ordering::SeqCst);
            shut.then(|| Reply::new(503, ""))
        })
        .await;
        let policy = RetryPolicy {
            tries: u32::MAX,
            longest_wait: Duration::from_millis(100),
            ..policy()
        };
        let service = Service::with(policy, PullSettings::default());
        let reference = server.image(0);
        let pull = service.pull(&reference);
        let others = async {
            // All the others are done while it has not sent a byte.
            wait_until(|| {
                let layers = service.images.progress(&reference).unwrap_or_default();
                let done =
                    |layer: &&bulkhead_images::pull::LayerSnapshot| layer.state == LayerState::Done;
                layers.iter().filter(done).count() == 10
            })
            .await;
            gate.store(true, Ordering::SeqCst);
        };
        let (done, ()) = tokio::join!(pull, others);
        let record = done.unwrap();
        // In the image they stand in their order all the same.
        let order: Vec<_> = record
            .layers
            .iter()
            .map(|layer| layer.diff_id.clone())
            .collect();
        let expected: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        assert_eq!(order, expected);
    }
}

#[tokio::test]
async fn three_slots_stay_busy_while_there_is_work() {
    let image = Image::new((0..9).map(layer).collect());
    // Nothing of a layer comes before three of them are asked for at one time.
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let config = image.id();
    let server = Server::with(vec![image.clone()], move |asked| {
        if asked.path.contains("/blobs/") && !asked.path.contains(&config) {
            counter.fetch_add(1, Ordering::SeqCst);
            return Some(Reply {
                silent: true,
                ..Reply::new(200, "")
            });
        }
        None
    })
    .await;
    let service = Service::with(patient(), PullSettings::default());
    let reference = server.image(0);
    let pull = Box::pin(service.pull(&reference));
    let watch = Box::pin(wait_until(|| asked.load(Ordering::SeqCst) >= 3));
    let done = futures::future::select(pull, watch).await;
    assert!(matches!(done, futures::future::Either::Right(_)));
    let fetching = service.images.progress(&reference).unwrap_or_default();
    let fetching = fetching
        .iter()
        .filter(|layer| layer.state == LayerState::Fetching);
    assert_eq!(fetching.count(), 3);
}

#[tokio::test]
async fn a_lost_database_costs_no_download() {
    let image = Image::new(vec![layer(1), layer(2)]);
    let server = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    service.pull(&server.image(0)).await.unwrap();
    let Service { images, dir } = service;
    drop(images);
    std::fs::remove_file(dir.path().join("state.redb")).unwrap();
    let layers = dir.path().join("layers");
    let images = open(
        dir.path(),
        layers.clone(),
        policy(),
        PullSettings::default(),
    );
    assert!(images.list().is_empty());
    assert_eq!(files(&layers).len(), 2);
    let record = images.pull(&server.image(0), None).await.unwrap();
    assert_eq!(record.id, image.id());
    for layer in &image.layers {
        assert_eq!(server.count(&layer.digest().to_string()), 1);
    }
    images.remove(&server.image(0)).await.unwrap();
    wait_until(|| files(&layers).is_empty()).await;
}

#[tokio::test]
async fn an_image_without_layers() {
    let image = Image::new(vec![]);
    let server = Server::with(vec![image.clone()], |_| None).await;
    let service = Service::new();
    for _ in 0..2 {
        let record = service.pull(&server.image(0)).await.unwrap();
        assert_eq!(record.id, image.id());
        // A container gets an empty directory.
        assert_eq!(service.images.disks(&record).len(), 1);
        assert_eq!(service.files().len(), 1);
    }
    service.images.remove(&server.image(0)).await.unwrap();
    wait_until(|| service.files().is_empty()).await;
}

#[tokio::test]
async fn progress_can_be_watched() {
    let image = Image::new(vec![layer(1), layer(2)]);
    let (server, gate) = holding_back(&image, 1).await;
    let service = Service::with(patient(), PullSettings::default());
    let reference = server.image(0);
    assert!(service.images.progress(&reference).is_none());
    let pull = service.pull(&reference);
    let watch = async {
        wait_until(|| {
            let layers = service.images.progress(&reference).unwrap_or_default();
            layers.len() == 2 && layers[0].fetched == layers[0].size
        })
        .await;
        gate.store(true, Ordering::SeqCst);
    };
    let (done, ()) = tokio::join!(pull, watch);
    done.unwrap();
    assert!(service.images.progress(&reference).is_none());
}

/// A tmpfs that is full too early. Needs root.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size}"),
                "bulkhead-test",
            ])
            .arg(dir.path())
            .output();
        mounted
            .is_ok_and(|done| done.status.success())
            .then_some(Self { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

#[tokio::test]
async fn a_full_disk() {
    let Some(disk) = SmallDisk::mount("4m") else {
        return skip("a_full_disk", "cannot mount a tmpfs here; run as root");
    };
    // 8 MiB that pack into little, so that only writing finds out; and noise that cannot fit.
    let text: Vec<u8> = (0..(8_u32 << 20) / 4)
        .flat_map(|n| (n / 512).to_le_bytes())
        .collect();
    let images = [
        Image::new(vec![
            layer(1),
            Layer::new(Packing::Zstd, &[("text", &text)]),
        ]),
        Image::new(vec![Layer::new(
            Packing::Plain,
            &[("noise", &Layer::noise(2, 6 << 20))],
        )]),
    ];
    let server = Server::with(images.to_vec(), |_| None).await;
    let state = tempfile::tempdir().unwrap();
    let layers_dir = disk.dir.path().join("layers");
    let images = open(
        state.path(),
        layers_dir.clone(),
        policy(),
        PullSettings::default(),
    );
    for number in 0..2 {
        let error = images.pull(&server.image(number), None).await.unwrap_err();
        let status = bulkhead_runtime::error::Grpc::status(&error);
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(images.list().is_empty());
        wait_until(|| files(&layers_dir).is_empty()).await;
    }
    assert!(server.count("/blobs/") > 0);
}

/// Waits, with a deadline, for what another task or thread does.
pub async fn wait_until(condition: impl Fn() -> bool) {
    let waited = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while !condition() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, waited)
        .await
        .expect("it does not happen");
}
