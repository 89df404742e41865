//! The writer against the reader, without tar.

use std::io::Cursor;

use super::*;

fn xattrs(list: &[(&str, &[u8])]) -> Xattrs {
    let mut out = Xattrs::default();
    for (name, value) in list {
        assert!(out.set(XattrName::parse(name.as_bytes()).unwrap(), value));
    }
    out
}

const ATTR: Attr = Attr {
    mode: 0o4755,
    uid: 70_000,
    gid: 1 << 31,
    mtime: -5,
    mtime_nsec: 999_999_999,
};

fn writer() -> Writer<Cursor<Vec<u8>>> {
    Writer::new(Cursor::new(Vec::new()), 1 << 30).unwrap()
}

fn plain(w: &mut Writer<Cursor<Vec<u8>>>, data: &[u8], x: &Xattrs) -> InodeId {
    let mut file = w.begin_file(data.len() as u64);
    for part in data.chunks(1000) {
        w.file_data(&mut file, part).unwrap();
    }
    w.end_file(file, &ATTR, x).unwrap().0
}

fn root<'a>(entries: Vec<(&'a [u8], Child)>, none: &'a Xattrs) -> DirInput<'a> {
    DirInput {
        attr: &ATTR,
        xattrs: none,
        parent: 0,
        entries,
    }
}

#[test]
fn an_empty_image() {
    let none = Xattrs::default();
    let Finished { out, size, .. } = writer()
        .finish(&[root(vec![], &none)], [], [1; 16])
        .unwrap();
    let image = out.into_inner();
    assert_eq!(image.len() as u64, size);
    let tree = read::read_tree(&image).unwrap();
    assert_eq!(tree.len(), 1);
    let top = &tree[&b""[..]];
    assert_eq!((top.mode, top.uid, top.gid), (0o044_755, 70_000, 1 << 31));
    assert_eq!((top.mtime, top.nlink), ((-5, 999_999_999), 2));
}

#[test]
fn every_size_around_the_block() {
    let mut w = writer();
    let x = xattrs(&[("user.a", &[7; 100])]);
    let sizes = [
        0, 1, 3915, 3916, 3917, 3918, 4031, 4032, 4033, 4095, 4096, 4097, 9000, 70_000,
    ];
    let data = |n: usize| {
        (0..n)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect::<Vec<_>>()
    };
    let mut made = vec![];
    for n in sizes {
        let name = |kind: &str| format!("{kind}{n:05}").into_bytes();
        made.push((name("a"), plain(&mut w, &data(n), &Xattrs::default())));
        made.push((name("b"), plain(&mut w, &data(n), &x)));
    }
    made.sort();
    let entries = made
        .iter()
        .map(|(n, id)| (&n[..], Child::Inode(*id, FileType::Regular)))
        .collect();
    let Finished { out, .. } = w.finish(&[root(entries, &x)], [], [0; 16]).unwrap();
    let tree = read::read_tree(&out.into_inner()).unwrap();
    for n in sizes {
        for kind in ["a", "b"] {
            let file = &tree[format!("{kind}{n:05}").as_bytes()];
            assert!(file.data == data(n), "{kind}{n}");
            assert_eq!(file.xattrs.len(), usize::from(kind == "b"));
        }
    }
}

#[test]
fn sparse_files_keep_their_holes() {
    let mut w = writer();
    let none = Xattrs::default();
    let size = 3 << 20;
    let mut s = w.begin_sparse(size).unwrap();
    w.sparse_data(&mut s, 5000, b"abc").unwrap();
    w.sparse_data(&mut s, 5003, b"def").unwrap();
    w.sparse_data(&mut s, 1 << 20, &[9; 9000]).unwrap();
    w.sparse_data(&mut s, size - 1, b"z").unwrap();
    assert!(w.sparse_data(&mut s, size - 1, b"z").is_err(), "going back");
    assert!(w.sparse_data(&mut s, size, b"z").is_err(), "behind the end");
    let id = w.end_sparse(s, &ATTR, &none).unwrap().0;
    let hole = w.begin_sparse(1 << 40).unwrap();
    let hole = w.end_sparse(hole, &ATTR, &none).unwrap().0;
    let empty = w.begin_sparse(0).unwrap();
    let empty = w.end_sparse(empty, &ATTR, &none).unwrap().0;
    assert!(w.begin_sparse(u64::MAX).is_err());
    let kind = FileType::Regular;
    let dir = root(
        vec![
            (b"e", Child::Inode(empty, kind)),
            (b"f", Child::Inode(id, kind)),
        ],
        &none,
    );
    let Finished { out, size: len, .. } = w.finish(&[dir], [(hole, 0)], [0; 16]).unwrap();
    assert!(len < (2 << 20), "{len} bytes");
    let tree = read::read_tree(&out.into_inner()).unwrap();
    let file = &tree[&b"f"[..]];
    let mut expected = vec![0; 3 << 20];
    expected[5000..5006].copy_from_slice(b"abcdef");
    expected[1 << 20..(1 << 20) + 9000].fill(9);
    *expected.last_mut().unwrap() = b'z';
    assert!(file.data == expected);
    assert_eq!(file.holes, size - 4096 * 5);
    assert_eq!(tree[&b"e"[..]].size, 0);
}

#[test]
fn large_directories_and_links() {
    let mut w = writer();
    let none = Xattrs::default();
    let node = w
        .add_node(Node::Symlink(&[b'x'; 5000]), &ATTR, &none)
        .unwrap();
    let dev = w.add_node(Node::CharDevice(0, 0), &ATTR, &none).unwrap();
    let sock = w.add_node(Node::Socket, &ATTR, &none).unwrap();
    assert!(
        w.add_node(Node::BlockDevice(4096, 0), &ATTR, &none)
            .is_err()
    );
    let names: Vec<String> = (0..5000).map(|n| format!("{n:0200}")).collect();
    let link = Child::Inode(node, FileType::Symlink);
    let many: Vec<_> = names.iter().map(|n| (n.as_bytes(), link)).collect();
    let top = root(
        vec![
            (b"!", Child::Inode(sock, FileType::Socket)),
            (b"d", Child::Dir(1)),
            (b"w", Child::Inode(dev, FileType::CharDevice)),
        ],
        &none,
    );
    let sub = DirInput {
        attr: &ATTR,
        xattrs: &none,
        parent: 0,
        entries: many,
    };
    let Finished { out, .. } = w.finish(&[top, sub], [(node, 5000)], [0; 16]).unwrap();
    let tree = read::read_tree(&out.into_inner()).unwrap();
    assert_eq!(tree.len(), 5004);
    assert_eq!(
        tree[format!("d/{}", names[4321]).as_bytes()].data,
        [b'x'; 5000]
    );
    assert_eq!(tree[&b"w"[..]].rdev, 0);
}

#[test]
fn big_attributes() {
    let mut w = writer();
    let x = xattrs(&[
        ("user.a", &[1; 65535]),
        ("user.b", &[2; 65535]),
        ("trusted.c", b""),
    ]);
    let id = plain(&mut w, b"small", &x);
    let entries = vec![
        (&b"f"[..], Child::Inode(id, FileType::Regular)),
        (b"g", Child::Dir(1)),
    ];
    let none = Xattrs::default();
    let sub = DirInput {
        attr: &ATTR,
        xattrs: &x,
        parent: 0,
        entries: vec![],
    };
    let Finished { out, .. } = w.finish(&[root(entries, &none), sub], [], [0; 16]).unwrap();
    let tree = read::read_tree(&out.into_inner()).unwrap();
    assert_eq!(tree[&b"f"[..]].data, b"small");
    for name in ["f", "g"] {
        assert_eq!(tree[name.as_bytes()].xattrs[&b"user.b"[..]], [2; 65535]);
    }
    let error = writer()
        .finish(&[root(vec![], &x)], [], [0; 16])
        .unwrap_err();
    assert!(matches!(error, WriterError::RootXattrs { .. }));
}

#[test]
fn limits_and_promises() {
    let mut w = Writer::new(Cursor::new(Vec::new()), 8192).unwrap();
    let mut file = w.begin_file(10_000);
    let error = w.file_data(&mut file, &[0; 10_000]).unwrap_err();
    assert!(matches!(error, WriterError::TooLarge { limit: 8192 }));
    let mut w = writer();
    let mut file = w.begin_file(3);
    assert!(w.file_data(&mut file, b"four").is_err());
    w.file_data(&mut file, b"12").unwrap();
    let error = w.end_file(file, &ATTR, &Xattrs::default()).unwrap_err();
    assert!(matches!(error, WriterError::Data { at: 2, size: 3 }));
}
