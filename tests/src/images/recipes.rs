//! Which images there are, and what is in each. `parts` is the folder `tests/images/parts.sh`
//! made: an upstream busybox and nginx from Debian's packages.

use std::{io, path::Path};

use tar::EntryType;

use super::{
    Compression, Config, Image, ImageError, Layer,
    base::{PATH, base, shell, strings, unpacked, web_server},
    configs, critest, kube,
};

/// Layers of the image `layers100`.
pub const MANY_LAYERS: usize = 100;
/// Layers of the image `layers250`: more than one disk of a pod can have.
pub const MORE_LAYERS: usize = 250;
/// Bytes of incompressible data in the image `bulk`, for throughput.
pub const BULK_BYTES: usize = 64 << 20;

/// Every image, in the order they are written.
///
/// # Errors
/// If a part is missing.
pub fn all(parts: &Path) -> Result<Vec<Image>, ImageError> {
    let mut images = vec![
        busybox(parts, "busybox:latest", Compression::Gzip, shell(&["sh"]))?,
        busybox(
            parts,
            "busybox-zstd:latest",
            Compression::Zstd,
            shell(&["sh"]),
        )?,
        busybox(
            parts,
            "busybox-plain:latest",
            Compression::None,
            shell(&["sh"]),
        )?,
        nginx(parts)?,
        volume_tools(parts)?,
        file_tools(parts)?,
        many_layers(parts, "layers100", MANY_LAYERS)?,
        many_layers(parts, "layers250", MORE_LAYERS)?,
        odd(parts)?,
        user(parts, "user-name", "www-data")?,
        user(parts, "user-id", "1002")?,
        user(parts, "user-id-group", "1003:1004")?,
        user(parts, "user-predefined-group", "1000")?,
        user(parts, "user-missing", "nosuchuser")?,
        entrypoint(parts)?,
        bulk()?,
    ];
    for (name, place, target) in LINKS {
        images.push(link(parts, name, place, target)?);
    }
    images.push(walls(parts)?);
    images.extend(configs::all(parts)?);
    images.extend(critest::all(parts)?);
    Ok(images)
}

/// What the tests with a real Kubernetes pull; `tools` is the folder `tests/kube-tools.sh` made.
///
/// # Errors
/// If a part is missing.
pub fn for_kubernetes(parts: &Path, tools: &Path) -> Result<Vec<Image>, ImageError> {
    let mut images = vec![busybox(
        parts,
        "busybox:latest",
        Compression::Gzip,
        shell(&["sh"]),
    )?];
    images.extend(kube::all(parts, tools)?);
    Ok(images)
}

/// The directory of the node's that the images of [`LINKS`] point to.
pub const VICTIM: &str = "/opt/bh-victim";

/// Images in which a place that every runtime uses is a link to the node: name, place, target.
pub const LINKS: [(&str, &str, &str); 13] = [
    ("link-dev", "dev", VICTIM),
    ("link-proc", "proc", VICTIM),
    ("link-sys", "sys", VICTIM),
    ("link-etc", "etc", VICTIM),
    ("link-tmp", "tmp", VICTIM),
    ("link-var-run", "var/run", VICTIM),
    ("link-etc-hosts", "etc/hosts", "/opt/bh-victim/hosts"),
    // And those that have a directory of their own there: a step that stays in the image succeeds, and
    // one that does not is led to the node.
    ("link-dev-own", "dev", VICTIM),
    ("link-sys-own", "sys", VICTIM),
    ("link-etc-own", "etc", VICTIM),
    ("link-tmp-own", "tmp", VICTIM),
    // As many steps up as reach the node's root from wherever the image is mounted.
    (
        "link-dev-up",
        "dev",
        "../../../../../../../../../../../../opt/bh-victim",
    ),
    (
        "link-etc-up",
        "etc",
        "../../../../../../../../../../../../opt/bh-victim",
    ),
];

fn link(parts: &Path, name: &str, place: &str, target: &str) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.symlink(place, target)?;
    if name.ends_with("-own") {
        top.dir("opt", 0o755)?.dir("opt/bh-victim", 0o755)?;
    }
    Ok(Image {
        name: format!("{name}:latest"),
        layers: vec![base(parts, Compression::Gzip)?, top],
        config: shell(&["sh"]),
    })
}

/// What the tests of the kernel's walls run beside the shell.
fn walls(parts: &Path) -> Result<Image, ImageError> {
    let mut tools = Layer::new(Compression::Gzip);
    tools.dir("tools", 0o755)?;
    tools.file(
        "tools/system-call",
        0o755,
        critest::program(parts, "system-call")?,
    )?;
    Ok(Image {
        name: "walls:latest".to_owned(),
        layers: vec![base(parts, Compression::Gzip)?, tools],
        config: shell(&["sh"]),
    })
}

fn busybox(
    parts: &Path,
    name: &str,
    compression: Compression,
    mut config: Config,
) -> Result<Image, ImageError> {
    // Else two images of the same files would be one image: its id is its configuration's digest.
    config.env.push(format!("IMAGE={name}"));
    Ok(Image {
        name: name.to_owned(),
        layers: vec![base(parts, compression)?],
        config,
    })
}

/// What the tests of volumes and of walls run beside the shell.
fn volume_tools(parts: &Path) -> Result<Image, ImageError> {
    let mut tools = Layer::new(Compression::Gzip);
    tools.dir("tools", 0o755)?;
    for name in [
        "watch-turns",
        "unix-talk",
        "vsock-walls",
        "meddle",
        "system-call",
        "kernel-offers",
    ] {
        let program = critest::program(parts, name)?;
        tools.file(format!("tools/{name}"), 0o755, program)?;
    }
    Ok(Image {
        name: "volume-tools:latest".to_owned(),
        layers: vec![base(parts, Compression::Gzip)?, tools],
        config: shell(&["sh"]),
    })
}

/// What sets capabilities, ACLs and attributes, and a program that maps and appends.
fn file_tools(parts: &Path) -> Result<Image, ImageError> {
    let mut tools = Layer::new(Compression::Gzip);
    unpacked(&mut tools, &parts.join("nginx"), &["libc6"])?;
    let packages = [
        "acl",
        "attr",
        "libacl1",
        "libattr1",
        "libcap2",
        "libcap2-bin",
    ];
    unpacked(&mut tools, &parts.join("files"), &packages)?;
    tools.dir("tools", 0o755)?;
    let program = critest::program(parts, "map-and-append")?;
    tools.file("tools/map-and-append", 0o755, program)?;
    Ok(Image {
        name: "file-tools:latest".to_owned(),
        layers: vec![base(parts, Compression::Gzip)?, tools],
        config: shell(&["sh"]),
    })
}

fn user(parts: &Path, name: &str, user: &str) -> Result<Image, ImageError> {
    let config = Config {
        user: user.to_owned(),
        ..shell(&["sh"])
    };
    busybox(parts, &format!("{name}:latest"), Compression::Gzip, config)
}

/// Entrypoint, command, environment, directory and stop signal of the image's own.
fn entrypoint(parts: &Path) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.dir("srv", 0o755)?;
    let config = Config {
        entrypoint: strings(&["/bin/echo", "entry"]),
        cmd: strings(&["from-cmd"]),
        env: strings(&[PATH, "FROM_IMAGE=yes"]),
        workdir: "/srv".to_owned(),
        stop_signal: "SIGUSR1".to_owned(),
        ..Config::default()
    };
    let layers = vec![base(parts, Compression::Gzip)?, top];
    Ok(Image {
        name: "entrypoint:latest".to_owned(),
        layers,
        config,
    })
}

fn nginx(parts: &Path) -> Result<Image, ImageError> {
    web_server(parts, "nginx:latest", 80)
}

/// Many layers: each adds a file, changes one, and takes one of an earlier layer away.
fn many_layers(parts: &Path, name: &str, count: usize) -> Result<Image, ImageError> {
    let mut layers = vec![base(parts, Compression::Gzip)?];
    for number in 1..count {
        let mut layer = Layer::new(Compression::Gzip);
        layer.dir("layers", 0o755)?;
        layer.file(format!("layers/{number}"), 0o644, format!("{number}\n"))?;
        layer.file("layers/top", 0o644, format!("{number}\n"))?;
        layer.file("layers/name", 0o644, format!("{name}\n"))?;
        if number % 10 == 0 {
            layer.file(format!("layers/.wh.{}", number - 5), 0o000, "")?;
        }
        layers.push(layer);
    }
    Ok(Image {
        name: format!("{name}:latest"),
        layers,
        config: shell(&["sh"]),
    })
}

/// Every odd file type a layer can hold, and what an upper layer can do to a lower one.
fn odd(parts: &Path) -> Result<Image, ImageError> {
    let mut lower = Layer::new(Compression::Gzip);
    lower.dir("odd", 0o755)?;
    lower.dir("odd/shared", 0o1777)?;
    lower.file("odd/plain", 0o640, "plain\n")?;
    lower.hardlink("odd/hard", "odd/plain")?;
    lower
        .symlink("odd/soft", "plain")?
        .symlink("odd/absolute", "/odd/plain")?;
    lower.symlink("odd/dangling", "/no/such/file")?;
    lower.node("odd/fifo", EntryType::Fifo, 0o600, (0, 0))?;
    lower.node("odd/null", EntryType::Char, 0o666, (1, 3))?;
    lower.node("odd/block", EntryType::Block, 0o600, (7, 0))?;
    lower
        .file("odd/setuid", 0o4755, "#!/bin/sh\n")?
        .file("odd/sticky", 0o1644, "")?;
    lower.file_of("odd/owned", 0o600, 4_000_000_000, "owned\n")?;
    lower.file("odd/empty", 0o644, "")?;
    lower.file(format!("odd/{}", "n".repeat(255)), 0o644, "long name\n")?;
    let deep = (0..40)
        .map(|_| "deep-directory")
        .collect::<Vec<_>>()
        .join("/");
    lower.file(format!("odd/{deep}/file"), 0o644, "deep\n")?;
    lower.file("odd/ünïcödé ☃", 0o644, "unicode\n")?;
    lower.file_with_xattrs(
        "odd/xattr",
        0o644,
        &[
            ("user.comment", b"with a\0zero"),
            // A capability set in its on-disk form (VFS_CAP_REVISION_2): cap_net_raw+ep.
            (
                "security.capability",
                &[
                    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                ],
            ),
        ],
        "xattr\n",
    )?;
    lower.zeros("odd/zeros", 32 << 20)?;
    lower.file("odd/large", 0o644, pseudo_random(3 << 20))?;
    lower
        .dir("odd/opaque", 0o755)?
        .file("odd/opaque/hidden", 0o644, "hidden\n")?;
    lower
        .dir("odd/gone", 0o755)?
        .file("odd/gone/inside", 0o644, "gone\n")?;
    lower.file("odd/replaced", 0o644, "a file\n")?;
    let mut upper = Layer::new(Compression::Zstd);
    upper.dir("odd", 0o755)?;
    upper.file("odd/.wh.gone", 0, "")?;
    // Without an entry of its own.
    upper.file("odd/shared/late", 0o644, "late\n")?;
    upper
        .dir("odd/opaque", 0o755)?
        .file("odd/opaque/.wh..wh..opq", 0, "")?;
    upper.file("odd/opaque/shown", 0o644, "shown\n")?;
    upper
        .dir("odd/replaced", 0o755)?
        .file("odd/replaced/by", 0o644, "a directory\n")?;
    Ok(Image {
        name: "odd:latest".to_owned(),
        layers: vec![base(parts, Compression::Gzip)?, lower, upper],
        config: shell(&["sh"]),
    })
}

/// Incompressible data, for measuring pulls.
fn bulk() -> io::Result<Image> {
    let mut layers = Vec::new();
    for number in 0..4_u64 {
        let mut layer = Layer::new(Compression::Gzip);
        layer.file(
            format!("bulk-{number}"),
            0o644,
            pseudo_random_from(number + 1, BULK_BYTES / 4),
        )?;
        layers.push(layer);
    }
    Ok(Image {
        name: "bulk:latest".to_owned(),
        layers,
        config: Config::default(),
    })
}

fn pseudo_random(size: usize) -> Vec<u8> {
    pseudo_random_from(0x9E37_79B9_7F4A_7C15, size)
}

/// xorshift64: the same bytes every time, and no compressor finds anything in them.
fn pseudo_random_from(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut data = Vec::with_capacity(size + 8);
    while data.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(size);
    data
}
