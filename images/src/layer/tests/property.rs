//! Random trees come back as they were; random operations and random damage give either an
//! error or a sound image, and the same one every time.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::builder::*;
use super::*;

/// What a file of the model is.
#[derive(Debug, Clone)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    HardLink(usize),
    Device(u64, u64),
}

#[derive(Debug, Clone)]
struct Model {
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: u32,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    // Bytes below and above the dot, so that `.` and `..` are sorted among names; any byte at all
    // but slash and NUL may be in a name.
    let byte = prop_oneof![Just(b'!'), Just(b'a'), Just(b'z'), 1_u8..=255]
        .prop_map(|b| if b == b'/' { b'_' } else { b });
    vec(byte, 1..40).prop_filter("special", |name| {
        name != b"." && name != b".." && !name.starts_with(b".wh.")
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let size = prop_oneof![0..200_usize, 3900..4200_usize, 0..20_000_usize];
    let file = (size, any::<u8>()).prop_map(|(n, b)| Kind::File(vec![b; n]));
    let target = vec(1_u8..=255, 1..300);
    prop_oneof![
        4 => file,
        2 => Just(Kind::Dir),
        1 => target.prop_map(Kind::Symlink),
        2 => any::<usize>().prop_map(Kind::HardLink),
        1 => (0..4096_u64, 0..1_048_576_u64).prop_map(|(a, b)| Kind::Device(a, b)),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let xattr = (
        "(user|trusted|security)\\.[a-z]{1,20}",
        vec(any::<u8>(), 0..200),
    );
    let xattrs = btree_map(xattr.0.prop_map(String::into_bytes), xattr.1, 0..3);
    (
        kind(),
        0_u16..0o10000,
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        xattrs,
    )
        .prop_map(|(kind, mode, uid, gid, mtime, xattrs)| Model {
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        })
}

/// Builds tar and the expected tree: each file goes below some directory made before it.
fn build(files: &[(Vec<u8>, usize, Model)]) -> (Vec<u8>, BTreeMap<Vec<u8>, Model>) {
    let mut tar = Tar::default();
    let mut dirs: Vec<Vec<u8>> = vec![vec![]];
    let mut linkable: Vec<Vec<u8>> = vec![];
    let mut expected: BTreeMap<Vec<u8>, Model> = BTreeMap::new();
    for (name, parent, model) in files {
        let mut path = dirs[parent % dirs.len()].clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > 4000 || expected.contains_key(&path) {
            continue;
        }
        let mut records: Vec<(String, Vec<u8>)> = vec![("path".into(), path.clone())];
        for (name, value) in &model.xattrs {
            let name = String::from_utf8(name.clone()).unwrap();
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let mut model = model.clone();
        let mut item = Item {
            mode: u64::from(model.mode),
            uid: u64::from(model.uid),
            gid: u64::from(model.gid),
            mtime: u64::from(model.mtime),
            ..item(b'0', "x")
        };
        match &model.kind {
            Kind::Dir => {
                item.kind = b'5';
                dirs.push(path.clone());
            }
            Kind::File(body) => item.body = body.clone(),
            Kind::Symlink(target) => {
                item.kind = b'2';
                records.push(("linkpath".into(), target.clone()));
            }
            Kind::Device(major, minor) => {
                item.kind = b'4';
                item.device = (*major, *minor);
            }
            Kind::HardLink(n) if !linkable.is_empty() => {
                let target = linkable[n % linkable.len()].clone();
                item.kind = b'1';
                model = expected[&target].clone();
                records.push(("linkpath".into(), target));
            }
            Kind::HardLink(_) => continue,
        }
        if !matches!(model.kind, Kind::Dir) {
            linkable.push(path.clone());
        }
        expected.insert(path, model);
        let records: Vec<(&str, &[u8])> = records
            .iter()
            .map(|(key, value)| (&key[..], &value[..]))
            .collect();
        tar = tar.pax(&records).item(&item);
    }
    (tar.end(), expected)
}

fn compare(tree: &Tree, expected: &BTreeMap<Vec<u8>, Model>) {
    assert_eq!(tree.len(), expected.len() + 1);
    for (path, model) in expected {
        let file = &tree[path];
        let (kind, data) = match &model.kind {
            Kind::Dir => (0o040_000, None),
            Kind::File(data) => (0o100_000, Some(data)),
            Kind::Symlink(target) => (0o120_000, Some(target)),
            Kind::Device(..) | Kind::HardLink(_) => (0o060_000, None),
        };
        let mode = if kind == 0o120_000 { 0o777 } else { model.mode };
        assert_eq!(file.mode, kind | mode);
        assert_eq!((file.uid, file.gid), (model.uid, model.gid));
        assert_eq!(file.mtime, (i64::from(model.mtime), 0));
        assert_eq!(&file.xattrs, &model.xattrs);
        if let Some(data) = data {
            assert!(file.data == *data, "{}", path.escape_ascii());
        }
    }
}

/// An operation on few names, so that they meet.
fn operation() -> impl Strategy<Value = Item> {
    let part = prop_oneof![
        4 => "[abc]",
        1 => "\\.wh\\.[abc]",
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
    ];
    let path = vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(&b"001225563"[..]);
    (
        path.clone(),
        "/?([abc]|\\.\\.)(/([abc]|\\.\\.)){0,2}",
        kind,
        0..6000_usize,
    )
        .prop_map(|(name, link, kind, size)| Item {
            link: link.into_bytes(),
            body: if kind == b'0' { vec![1; size] } else { vec![] },
            ..item(kind, name)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn trees_come_back(files in vec((name(), any::<usize>(), model()), 0..60)) {
        let (tar, expected) = build(&files);
        compare(&tree(&tar), &expected);
    }

    #[test]
    fn operations_give_an_error_or_a_sound_image(ops in vec(operation(), 0..30)) {
        let tar = ops.iter().fold(Tar::default(), Tar::item).end();
        if let Ok((tree, _)) = run(&tar) {
            for path in tree.keys() {
                prop_assert!(!path.split(|b| *b == b'/').any(|part| part == b".."));
            }
        }
        // Without what is refused, so that most cases get far.
        let mut tar = Tar::default();
        for op in &ops {
            let longer = tar.clone().item(op);
            if run(&longer.0).is_ok() {
                tar = longer;
            }
        }
        prop_assert!(run(&tar.end()).is_ok());
    }

    #[test]
    fn damage_never_panics(
        files in vec((name(), any::<usize>(), model()), 1..8),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        repair in any::<bool>(),
    ) {
        let (mut tar, _) = build(&files);
        for (at, value) in damage {
            let at = at.index(tar.len());
            tar[at] = value;
            if repair {
                // Make the block a header with a right sum again, so that its fields are read.
                let start = at - at % 512;
                let mut block: [u8; 512] = tar[start..start + 512].try_into().unwrap();
                checksum(&mut block);
                tar[start..start + 512].copy_from_slice(&block);
            }
        }
        let limits = Limits { max_layer_bytes: 1 << 22, ..Limits::default() };
        let _ = run_limited(&tar, &limits);
    }

    #[test]
    fn noise_never_panics(bytes in vec(any::<u8>(), 0..4096)) {
        let _ = run(&bytes);
    }
}
