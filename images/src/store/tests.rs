use super::*;
use crate::manifest::ImageConfig;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> Arc<Store> {
        self.open_keeping(Duration::from_secs(3600))
    }

    /// With another time for layers of unfinished pulls.
    fn open_keeping(&self, keep_parts: Duration) -> Arc<Store> {
        let database = Database::open(&self.dir.path().join("state.redb")).unwrap();
        Store::open(self.dir.path().join("layers"), &database, keep_parts).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path().join("layers"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn digest(n: u8) -> Digest {
    Digest::of(&[n])
}

/// Puts a layer's file in place, as a pull does.
async fn make_layer(store: &Arc<Store>, n: u8) -> (LayerRecord, Lease) {
    let lease = store.lease(&digest(n));
    store.expect_layers(std::iter::once(&lease)).await.unwrap();
    fs::write(store.layer_path(&digest(n)), [n; 100]).unwrap();
    let info = FileInfo {
        size: 100,
        opaque_root: false,
        implicit_dirs: Vec::new(),
    };
    assert_eq!(store.layer(&lease), Some(info));
    let record = LayerRecord {
        diff_id: digest(n),
        digest: digest(n),
        blob_size: 50,
        file_size: 100,
        opaque_root: false,
        implicit_dirs: Vec::new(),
    };
    (record, lease)
}

async fn make_image(store: &Arc<Store>, id: u8, tag: &str, layers: &[u8]) -> Arc<ImageRecord> {
    let (mut records, mut leases) = (Vec::new(), Vec::new());
    for &n in layers {
        let (record, lease) = make_layer(store, n).await;
        records.push(record);
        leases.push(lease);
    }
    let image = ImageRecord {
        id: digest(id).to_string(),
        listed: true,
        repo_tags: vec![tag.to_owned()],
        repo_digests: vec![format!("r.example/a@{}", digest(id))],
        config: ImageConfig::default(),
        layers: records,
        size: 1,
        pulled_at: 0,
        config_file: String::new(),
    };
    store.commit(image).await.unwrap()
}

#[tokio::test]
async fn layers_go_with_the_last_image_that_has_them() {
    let fixture = Fixture::new();
    let store = fixture.open();
    make_image(&store, 100, "r.example/a:1", &[1, 2]).await;
    make_image(&store, 101, "r.example/b:1", &[2, 3]).await;
    assert_eq!(fixture.files().len(), 3);
    store.remove("r.example/a:1").await.unwrap();
    assert_eq!(fixture.files().len(), 2);
    store.remove("r.example/a:1").await.unwrap();
    store.remove("r.example/b:1").await.unwrap();
    assert!(fixture.files().is_empty(), "{:?}", fixture.files());
    assert!(store.list().is_empty());
}

#[tokio::test]
async fn a_tag_moves_and_removing_takes_all_names() {
    let fixture = Fixture::new();
    let store = fixture.open();
    make_image(&store, 100, "r.example/a:1", &[1]).await;
    make_image(&store, 100, "r.example/a:2", &[1]).await;
    let one = store.find("r.example/a:1").unwrap().unwrap();
    assert_eq!(one.repo_tags, ["r.example/a:1", "r.example/a:2"]);
    make_image(&store, 101, "r.example/a:1", &[2]).await;
    assert_eq!(
        store.find("r.example/a:1").unwrap().unwrap().id,
        digest(101).to_string()
    );
    let old = store.find(&digest(100).to_string()).unwrap().unwrap();
    assert_eq!(old.repo_tags, ["r.example/a:2"]);
    store.remove(&old.id).await.unwrap();
    assert!(store.find("r.example/a:2").unwrap().is_none());
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn a_held_image_is_gone_for_all_but_its_container() {
    let fixture = Fixture::new();
    let id = digest(100).to_string();
    {
        let store = fixture.open();
        make_image(&store, 100, "r.example/a:1", &[1]).await;
        store.hold("c1", "r.example/a:1").await.unwrap();
        store.hold("c2", &id).await.unwrap();
        let missing = store.hold("c3", "r.example/none:1").await.unwrap_err();
        assert!(matches!(missing, ImagesError::NotFound { .. }));
        store.remove("r.example/a:1").await.unwrap();
        assert!(store.list().is_empty());
        assert!(store.find(&id).unwrap().is_none());
        store.release("c1").await.unwrap();
    }
    let store = fixture.open();
    assert_eq!(store.holders(), ["c2"]);
    assert!(store.by_id(&id).is_some());
    assert_eq!(fixture.files().len(), 1);
    store.release("c2").await.unwrap();
    store.release("c2").await.unwrap();
    assert!(store.by_id(&id).is_none());
    assert!(fixture.files().is_empty());
}

#[tokio::test]
async fn a_held_image_that_is_pulled_again_is_listed_again() {
    let fixture = Fixture::new();
    let store = fixture.open();
    make_image(&store, 100, "r.example/a:1", &[1]).await;
    store.hold("c1", "r.example/a:1").await.unwrap();
    store.remove("r.example/a:1").await.unwrap();
    make_image(&store, 100, "r.example/a:2", &[1]).await;
    assert_eq!(store.list()[0].repo_tags, ["r.example/a:2"]);
    store.release("c1").await.unwrap();
    assert_eq!(fixture.files().len(), 1);
}

#[tokio::test]
async fn a_layer_goes_with_its_last_lease() {
    let fixture = Fixture::new();
    let store = fixture.open();
    make_image(&store, 100, "r.example/a:1", &[1]).await;
    let (first, second) = (store.lease(&digest(1)), store.lease(&digest(1)));
    store.remove("r.example/a:1").await.unwrap();
    assert_eq!(fixture.files().len(), 1);
    drop(first);
    assert_eq!(fixture.files().len(), 1);
    drop(second);
    wait_until(|| fixture.files().is_empty()).await;

    // Not one that an image or an unfinished pull has.
    make_image(&store, 100, "r.example/a:1", &[1]).await;
    let (_, unfinished) = make_layer(&store, 2).await;
    drop((store.lease(&digest(1)), unfinished));
    tokio::task::spawn_blocking(|| ()).await.unwrap();
    assert_eq!(fixture.files().len(), 2);
}

/// Waits, with a deadline, for what another task or thread does.
async fn wait_until(condition: impl Fn() -> bool) {
    let waited = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while !condition() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited)
        .await
        .expect("it does not happen");
}

#[tokio::test]
async fn layers_of_unfinished_pulls_go_when_their_time_is_up() {
    let fixture = Fixture::new();
    let store = fixture.open_keeping(Duration::from_secs(1));
    crate::expiry::spawn(&store);
    make_image(&store, 100, "r.example/a:1", &[1]).await;
    let (_, held) = make_layer(&store, 2).await;
    let (_, left) = make_layer(&store, 3).await;
    assert_eq!(fixture.files().len(), 3);
    drop(left);
    // Nobody pulls anything, and nothing is started anew.
    wait_until(|| fixture.files().len() == 2).await;
    assert!(store.layer(&held).is_some());
    drop(held);
    wait_until(|| fixture.files().len() == 1).await;
    assert_eq!(store.list().len(), 1);
}

/// Converts a layer into the store, as a pull does.
async fn convert(store: &Arc<Store>, tar: &[u8]) -> (Digest, Lease) {
    let diff_id = Digest::of(tar);
    let lease = store.lease(&diff_id);
    store.expect_layers(std::iter::once(&lease)).await.unwrap();
    let limits = crate::layer::Limits::default();
    let pending = crate::layer::convert(tar, store.layers_dir(), &limits, &mut |_| ()).unwrap();
    pending.commit(&file_name(diff_id.hex())).unwrap();
    (diff_id, lease)
}

/// A layer with an opaque root and a directory without an entry.
fn odd_tar() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for path in [".wh..wh..opq", "tmp/f"] {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        builder.append_data(&mut header, path, &b""[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn a_lost_database_loses_no_layer() {
    let fixture = Fixture::new();
    let (diff_id, size) = {
        let store = fixture.open();
        let (diff_id, lease) = convert(&store, &odd_tar()).await;
        make_layer(&store, 7).await;
        (diff_id, store.layer(&lease).unwrap().size)
    };
    fs::remove_file(fixture.dir.path().join("state.redb")).unwrap();
    {
        let store = fixture.open();
        // The other file does not say what it is.
        assert_eq!(fixture.files(), [file_name(diff_id.hex())]);
        let info = store.layer(&store.lease(&diff_id)).unwrap();
        assert_eq!((info.opaque_root, info.size), (true, size));
        assert_eq!(info.implicit_dirs, [b"tmp".to_vec()]);
    }
    // A file under another's name is not taken for that.
    fs::remove_file(fixture.dir.path().join("state.redb")).unwrap();
    let layers = fixture.dir.path().join("layers");
    fs::rename(
        layers.join(file_name(diff_id.hex())),
        layers.join(file_name(digest(1).hex())),
    )
    .unwrap();
    fixture.open();
    assert!(fixture.files().is_empty());
}

#[tokio::test]
async fn the_sweep_at_start() {
    let fixture = Fixture::new();
    {
        let store = fixture.open();
        make_image(&store, 100, "r.example/a:1", &[1, 2]).await;
        make_image(&store, 101, "r.example/b:1", &[3]).await;
        // A layer of a pull that did not get further: kept for the next try.
        make_layer(&store, 4).await;
        // One that was begun only.
        let lease = store.lease(&digest(5));
        store.expect_layers(std::iter::once(&lease)).await.unwrap();
        let layers = fixture.dir.path().join("layers");
        fs::write(layers.join(".layer-abc.tmp"), "temporary").unwrap();
        fs::write(store.layer_path(&digest(6)), "nobody's").unwrap();
        // And an image one of whose files was damaged.
        fs::write(store.layer_path(&digest(3)), "cut").unwrap();
    }
    let store = fixture.open();
    let images = store.list();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].repo_tags, ["r.example/a:1"]);
    let mut kept: Vec<_> = [1, 2, 4].map(|n| file_name(digest(n).hex())).into();
    kept.sort();
    assert_eq!(fixture.files(), kept);
    assert!(store.layer(&store.lease(&digest(4))).is_some());

    store.prune_parts(false).await.unwrap();
    assert_eq!(fixture.files().len(), 3);
    store.prune_parts(true).await.unwrap();
    assert_eq!(fixture.files().len(), 2);
}

#[tokio::test]
async fn what_one_pull_found_out_of_a_layer_the_next_knows() {
    let fixture = Fixture::new();
    let store = fixture.open();
    let (_, lease) = convert(&store, &odd_tar()).await;
    // A second pull, or the same one tried again after it was cut off.
    store.expect_layers(std::iter::once(&lease)).await.unwrap();
    let info = store.layer(&lease).unwrap();
    assert!(info.opaque_root);
    assert_eq!(info.implicit_dirs, [b"tmp".to_vec()]);
}
