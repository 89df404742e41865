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
        let database = Database::open(&self.dir.path().join("state.redb")).unwrap();
        Store::open(self.dir.path().join("layers"), &database).unwrap()
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
async fn a_leased_layer_stays() {
    let fixture = Fixture::new();
    let store = fixture.open();
    make_image(&store, 100, "r.example/a:1", &[1]).await;
    let lease = store.lease(&digest(1));
    store.remove("r.example/a:1").await.unwrap();
    assert_eq!(fixture.files().len(), 1);
    drop(lease);
    // What was left over by the lease is the sweep's.
    drop(store);
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
    let lease = store.lease(&digest(1));
    store.expect_layers(std::iter::once(&lease)).await.unwrap();
    let (of_pull, dirs) = (Arc::clone(&store), vec![b"tmp".to_vec()]);
    let expect = move || of_pull.expect(&digest(1), true, dirs);
    tokio::task::spawn_blocking(expect).await.unwrap().unwrap();
    fs::write(store.layer_path(&digest(1)), [1; 100]).unwrap();
    // A second pull, or the same one tried again after it was cut off.
    store.expect_layers(std::iter::once(&lease)).await.unwrap();
    let info = store.layer(&lease).unwrap();
    assert!(info.opaque_root);
    assert_eq!(info.implicit_dirs, [b"tmp".to_vec()]);
}
