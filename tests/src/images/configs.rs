//! Images whose configuration, or what they have where a pod's files go, is of a kind that people
//! report: an empty entrypoint, volumes, another architecture, dangling links.

use std::path::Path;

use super::{
    Compression, Config, Image, ImageError, Layer,
    base::{base, shell, strings},
};

pub(super) fn all(parts: &Path) -> Result<Vec<Image>, ImageError> {
    Ok(vec![
        empty_entrypoint(parts)?,
        volumes(parts)?,
        says_arm64(parts)?,
        odd_env(parts)?,
        dangling(parts)?,
        commands(parts)?,
    ])
}

fn image(parts: &Path, name: &str, config: Config, tops: Vec<Layer>) -> Result<Image, ImageError> {
    let mut layers = vec![base(parts, Compression::Gzip)?];
    layers.extend(tops);
    Ok(Image {
        name: format!("{name}:latest"),
        layers,
        config,
    })
}

/// What `ENTRYPOINT [""]` leaves, with which people take a base image's entrypoint away.
fn empty_entrypoint(parts: &Path) -> Result<Image, ImageError> {
    let config = Config {
        entrypoint: strings(&[""]),
        ..shell(&["echo", "hi"])
    };
    image(parts, "empty-entrypoint", config, Vec::new())
}

/// Volumes with and without content, and some that cannot be.
fn volumes(parts: &Path) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.dir_of("filled", 0o2770, 33)?
        .file_of("filled/given", 0o640, 33, "of the image\n")?;
    top.symlink("filled/link", "given")?;
    let config = Config {
        volumes: strings(&[
            "/data",
            "/filled",
            "/srv/../cleaned/",
            "/proc",
            "/",
            "/etc/hosts",
        ]),
        ..shell(&["sh"])
    };
    image(parts, "volumes", config, vec![top])
}

/// Built on one machine for another, by a tool that did not say so.
fn says_arm64(parts: &Path) -> Result<Image, ImageError> {
    let config = Config {
        architecture: Some("arm64".to_owned()),
        ..shell(&["echo", "runs"])
    };
    image(parts, "says-arm64", config, Vec::new())
}

fn odd_env(parts: &Path) -> Result<Image, ImageError> {
    let mut config = shell(&["sh"]);
    let odd = ["A=1", "=x", "NOTHING", "A=2", "LINES_OF=a\nb\n", "EMPTY="];
    config.env.extend(strings(&odd));
    image(parts, "odd-env", config, Vec::new())
}

/// As systemd's distributions have them: links that lead nowhere in a container.
fn dangling(parts: &Path) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.symlink("etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf")?
        .symlink("etc/hosts", "../run/nowhere/hosts")?
        .symlink("etc/hostname", "/nowhere/hostname")?
        .symlink("etc/localtime", "../usr/share/zoneinfo/Etc/UTC")?;
    let mut links = Layer::new(Compression::Gzip);
    links
        .symlink("var/run", "/run")?
        .symlink("tmp", "/var/tmp")?;
    image(parts, "dangling", shell(&["sh"]), vec![top, links])
}

/// Files that cannot be started, each for a reason of its own.
fn commands(parts: &Path) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.dir("cmd", 0o755)?.dir("cmd/directory", 0o755)?;
    top.file("cmd/plain", 0o644, "#!/bin/sh\n")?;
    top.file("cmd/no-interpreter", 0o755, "#!/no/such/interpreter\n")?;
    // An ELF header for little-endian 64-bit AArch64 (elf(5): EM_AARCH64), and nothing else.
    let mut arm = b"\x7fELF\x02\x01\x01".to_vec();
    arm.resize(16, 0);
    arm.extend_from_slice(&[2, 0, 183, 0, 1, 0, 0, 0]);
    arm.resize(64, 0);
    top.file("cmd/arm64", 0o755, arm)?;
    image(parts, "commands", shell(&["sh"]), vec![top])
}
