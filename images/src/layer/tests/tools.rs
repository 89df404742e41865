//! The image in the eyes of others: GNU tar makes layers, `fsck.erofs` and the kernel read images.
//!
//! Each test says why when it cannot run here: no program, no root, no EROFS in the kernel.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use super::builder::*;
use super::*;

fn skip(why: &str) {
    println!("skipped: {why}");
}

/// Runs a program that must succeed; `None` when it is not installed.
fn program(command: &mut Command) -> Option<Output> {
    let name = command.get_program().to_owned();
    match command.output() {
        Ok(output) if output.status.success() => Some(output),
        Ok(output) => panic!(
            "{}: {}\n{}{}",
            name.display(),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            skip(&format!("{} is not installed", name.display()));
            None
        }
        Err(e) => panic!("{}: {e}", name.display()),
    }
}

fn image(tar: &[u8], dir: &Path) -> std::path::PathBuf {
    let pending = convert(tar, dir, &Limits::default(), &mut |_| {}).unwrap();
    pending.commit("layer.erofs").unwrap().0
}

/// Devices, links, attributes, long names, a large directory, sizes around a block.
fn odd_layer() -> Vec<u8> {
    let mut tar = Tar::default()
        .item(&Item {
            mode: 0o1777,
            ..item(b'5', "./")
        })
        .dir("d")
        .item(&Item {
            device: (1, 3),
            ..item(b'3', "d/null")
        })
        .item(&Item {
            device: (259, 70_000),
            ..item(b'4', "d/disk")
        })
        .item(&item(b'6', "d/pipe"))
        .symlink("d/l", "../f4096")
        .pax(&[
            ("SCHILY.xattr.user.note", b"hello"),
            ("SCHILY.xattr.trusted.t", &[7; 500]),
        ])
        .item(&Item {
            mode: 0o6755,
            uid: 70_000,
            gid: 1 << 31,
            ..item(b'0', "d/x")
        })
        .pax(&[("mtime", b"1234567890.123456789")])
        .file("time", "")
        .pax(&[("linkpath", "t".repeat(4095).as_bytes())])
        .symlink("long-link", "x")
        .dir("many");
    for depth in 1..=30 {
        tar = tar.dir("p/".repeat(depth));
    }
    for n in [0, 1, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 100_000] {
        tar = tar.file(format!("f{n}"), vec![b'x'; n]);
    }
    for n in 0..1500 {
        tar = tar.file(format!("many/{n:050}"), n.to_string());
    }
    tar.hardlink("d/h", "f4097").hardlink("h2", "d/h").end()
}

#[test]
fn fsck_finds_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&odd_layer(), dir.path());
    program(Command::new("fsck.erofs").arg("--extract").arg(&image));
}

#[test]
fn sparse_files_of_gnu_tar() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let mut file = fs::File::create(&path).unwrap();
    for n in 0..40_u64 {
        file.seek(SeekFrom::Start(n * 300_000)).unwrap();
        file.write_all(&[b'a'; 5000]).unwrap();
    }
    file.set_len(20 << 20).unwrap();
    let content = fs::read(&path).unwrap();
    for format in ["gnu", "posix 0.0", "posix 0.1", "posix 1.0"] {
        let mut command = Command::new("tar");
        command.arg("-C").arg(dir.path()).args(["-S", "-cf", "-"]);
        match format.split_once(' ') {
            Some((format, version)) => command
                .arg(format!("--format={format}"))
                .arg(format!("--sparse-version={version}")),
            None => command.arg(format!("--format={format}")),
        };
        let Some(output) = program(command.arg("sparse")) else {
            return;
        };
        assert!(output.stdout.len() < 1 << 20, "{format}: not sparse");
        let tree = tree(&output.stdout);
        let file = &tree[&b"sparse"[..]];
        assert!(file.data == content && file.holes > 10 << 20, "{format}");
    }
}

#[test]
fn trees_of_gnu_tar() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("top");
    fs::create_dir_all(top.join("sub/deeper")).unwrap();
    let long = "n".repeat(200);
    fs::write(top.join(&long), "long").unwrap();
    fs::write(top.join("sub/deeper/big"), vec![5; 1 << 20]).unwrap();
    fs::set_permissions(top.join(&long), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(top.join(&long), top.join("sub/hard")).unwrap();
    symlink("l".repeat(300), top.join("link")).unwrap();
    for format in ["gnu", "posix", "oldgnu"] {
        let mut command = Command::new("tar");
        command
            .arg("-C")
            .arg(&top)
            .arg(format!("--format={format}"))
            .args(["-cf", "-", "."]);
        let Some(output) = program(&mut command) else {
            return;
        };
        let tree = tree(&output.stdout);
        let all = [
            "link",
            &long,
            "sub",
            "sub/deeper",
            "sub/deeper/big",
            "sub/hard",
        ];
        assert_eq!(paths(&tree), all, "{format}");
        let file = &tree[long.as_bytes()];
        assert_eq!(
            (file.mode, file.nlink, &file.data[..]),
            (0o100_640, 2, &b"long"[..])
        );
        assert_eq!(tree[&b"link"[..]].data, [b'l'; 300]);
        assert_eq!(tree[&b"sub/deeper/big"[..]].data, vec![5; 1 << 20]);
    }
}

/// Unpacks the layer with GNU tar and mounts its image, and compares names, types, modes, owners,
/// times, sizes, links, devices, contents and attributes. In a mount namespace of its own, so that nothing
/// stays mounted whatever happens.
#[test]
fn the_kernel_sees_what_tar_unpacks() {
    const SCRIPT: &str = r"
        set -eu
        cd $1
        mkdir mounted unpacked
        mount -t erofs -o ro,loop layer.erofs mounted
        tar --xattrs --xattrs-include='*' --numeric-owner \
            --delay-directory-restore -xpf layer.tar -C unpacked
        list() {
            (cd $1 && find . ! -type d -printf '%p %y %m %U %G %T@ %s %n %l\n' -o \
                -type d -printf '%p %y %m %U %G %T@\n' | LC_ALL=C sort)
            (cd $1 && find . -type b -o -type c | LC_ALL=C sort | xargs -r stat -c '%n %t:%T')
        }
        list mounted > mounted.list
        list unpacked > unpacked.list
        cmp unpacked.list mounted.list || { diff unpacked.list mounted.list | cut -c -200 | head >&2; exit 1; }
        # Contents and extended attributes: the same tree gives the same archive.
        again() {
            tar --xattrs --xattrs-include='*' --sort=name --numeric-owner --format=posix \
                --pax-option=exthdr.name=x,delete=atime,delete=ctime -C $1 -cf $1.tar .
        }
        again mounted
        again unpacked
        cmp mounted.tar unpacked.tar
        tar --xattrs --xattrs-include='*' -tvvf mounted.tar > verbose.list
        grep -q trusted.t verbose.list || { cat verbose.list | cut -c -150 | head -30 >&2; exit 1; }
    ";
    if !rustix::process::geteuid().is_root() {
        return skip("mounting needs root");
    }
    if !fs::read_to_string("/proc/filesystems")
        .unwrap()
        .contains("\terofs")
    {
        return skip("this kernel has no EROFS");
    }
    let dir = tempfile::tempdir().unwrap();
    let tar = odd_layer();
    image(&tar, dir.path());
    fs::write(dir.path().join("layer.tar"), &tar).unwrap();
    let mut command = Command::new("unshare");
    program(
        command
            .args(["-m", "sh", "-c", SCRIPT, "sh"])
            .arg(dir.path()),
    );
}
