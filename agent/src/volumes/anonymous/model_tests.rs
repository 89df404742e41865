//! The copy against a plain model of the tree.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::fixture::{Case, attributes, is_root, names};

/// All that can be seen of a file.
#[derive(Debug, PartialEq)]
struct Node {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    device: u64,
    content: Option<Vec<u8>>,
    target: Option<PathBuf>,
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// The first path of the same file.
    first: PathBuf,
}

/// The plain model of a tree: by path, what is there.
fn model(root: &Path) -> BTreeMap<PathBuf, Node> {
    fn look(
        root: &Path,
        path: &Path,
        firsts: &mut HashMap<u64, PathBuf>,
        all: &mut BTreeMap<PathBuf, Node>,
    ) {
        let full = root.join(path);
        let stat = full.symlink_metadata().unwrap();
        let first = firsts
            .entry(stat.ino())
            .or_insert_with(|| path.to_owned())
            .clone();
        let node = Node {
            mode: stat.mode(),
            owner: (stat.uid(), stat.gid()),
            modified: (stat.mtime(), stat.mtime_nsec()),
            device: stat.rdev(),
            content: stat.is_file().then(|| fs::read(&full).unwrap()),
            target: fs::read_link(&full).ok(),
            attributes: attributes(&full),
            first,
        };
        all.insert(path.to_owned(), node);
        if stat.is_dir() {
            for name in names(&full) {
                look(root, &path.join(name), firsts, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    look(root, Path::new(""), &mut HashMap::new(), &mut all);
    all
}

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    File(Vec<(bool, usize)>),
    Link(Vec<u8>),
    Same(usize),
    Node(FileType),
}

#[derive(Debug, Clone)]
struct Entry {
    path: Vec<Vec<u8>>,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    attribute: Option<Vec<u8>>,
    /// Of a further user, in an access list.
    listed: Option<u32>,
}

fn entry() -> impl Strategy<Value = Entry> {
    let name = prop::sample::select(vec![
        b"a".to_vec(),
        b"b".to_vec(),
        b"..x".to_vec(),
        b"\xff\xfe".to_vec(),
        b"new\nline".to_vec(),
        vec![b'n'; 255],
    ]);
    let kind = prop_oneof![
        4 => Just(Kind::Directory),
        4 => prop::collection::vec((any::<bool>(), 0usize..9000), 0..4).prop_map(Kind::File),
        1 => prop::sample::select(vec!["/etc/passwd", "../../..", "a", "/"])
            .prop_map(|target| Kind::Link(target.into())),
        2 => (0usize..20).prop_map(Kind::Same),
        1 => prop::sample::select(vec![FileType::Fifo, FileType::Socket]).prop_map(Kind::Node),
    ];
    let attribute = prop::option::of(prop::collection::vec(any::<u8>(), 0..100));
    (
        prop::collection::vec(name, 1..4),
        kind,
        0u32..0o10000,
        (0u32..3, 0u32..3),
        (-10i64..1 << 31, 0i64..1_000_000_000),
        attribute,
        prop::option::of(0u32..8),
    )
        .prop_map(
            |(path, kind, mode, owner, modified, attribute, listed)| Entry {
                path,
                kind,
                mode,
                owner,
                modified,
                attribute,
                listed,
            },
        )
}

/// An access list that lets user 77 do `bits` (linux/posix_acl_xattr.h).
fn access_list(bits: u32) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    let rules = [
        (1u16, 6, u32::MAX),
        (2, bits, 77),
        (4, 4, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 1, u32::MAX),
    ];
    for (tag, bits, id) in rules {
        list.extend(tag.to_le_bytes());
        list.extend(u16::try_from(bits).unwrap().to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

/// Makes an entry, if one can be made there.
fn build(root: &Path, entry: &Entry, made: &[PathBuf]) -> Option<PathBuf> {
    let path: PathBuf = entry
        .path
        .iter()
        .map(|name| OsString::from_vec(name.clone()))
        .collect();
    // Not through a link that was made before: it may lead out of the tree.
    let mut above = root.to_owned();
    for name in path.parent()?.components() {
        above.push(name);
        above.symlink_metadata().ok()?.is_dir().then_some(())?;
    }
    let path = root.join(path);
    match &entry.kind {
        Kind::Directory => fs::create_dir(&path).ok()?,
        Kind::File(parts) => {
            let mut content = Vec::new();
            for (zero, length) in parts {
                content.resize(content.len() + length, if *zero { 0 } else { 7 });
            }
            std::io::Write::write_all(&mut File::create_new(&path).ok()?, &content).unwrap();
        }
        Kind::Link(target) => symlink(OsStr::from_bytes(target), &path).ok()?,
        Kind::Same(number) => {
            let other = made.get(*number)?;
            other.symlink_metadata().ok()?.is_file().then_some(())?;
            return fs::hard_link(other, &path).ok().map(|()| path);
        }
        Kind::Node(kind) => rustix::fs::mknodat(CWD, &path, *kind, Mode::RWXU, 0).ok()?,
    }
    let file = matches!(entry.kind, Kind::Directory | Kind::File(_));
    std::os::unix::fs::lchown(&path, Some(entry.owner.0), Some(entry.owner.1)).unwrap();
    if let (Some(value), true) = (&entry.attribute, file) {
        rustix::fs::setxattr(&path, "user.x", value, XattrFlags::empty()).unwrap();
    }
    if let (Some(bits), true) = (entry.listed, file) {
        let name = match entry.kind {
            Kind::Directory if bits % 2 == 0 => "system.posix_acl_default",
            _ => "system.posix_acl_access",
        };
        rustix::fs::setxattr(&path, name, &access_list(bits), XattrFlags::empty()).unwrap();
    } else if !matches!(entry.kind, Kind::Link(_)) {
        fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
    }
    let time = Timespec {
        tv_sec: entry.modified.0,
        tv_nsec: entry.modified.1,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    Some(path)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_copy_equals_the_image(entries in prop::collection::vec(entry(), 0..40)) {
        if !is_root() {
            return Ok(());
        }
        let case = Case::new();
        let data = case.root().join("data");
        fs::create_dir(&data).unwrap();
        let mut made = Vec::new();
        for entry in &entries {
            made.extend(build(&data, entry, &made));
        }
        let copy = case.make("/data").unwrap();
        prop_assert_eq!(model(&copy), model(&data));
        prop_assert_eq!(names(case.dir.path()), ["root", "volume-0"]);
    }
}
