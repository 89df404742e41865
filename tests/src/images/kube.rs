//! The images of the tests with a real Kubernetes: the cluster's DNS, and what Kubernetes' own specs ask
//! for by name. They lie below the name of their registry, as critest's do. `tools` is the folder
//! that `tests/kube-tools.sh` made.

use std::path::Path;

use super::{
    Compression, Config, Image, ImageError, Layer,
    base::{PATH, base, shell, strings, web_server},
    critest::{E2E, pause_of, program},
};

/// All of them, without those that other tests have, too.
///
/// # Errors
/// If a part is missing.
pub(super) fn all(parts: &Path, tools: &Path) -> Result<Vec<Image>, ImageError> {
    let e2e = |name: &str| format!("{E2E}/{name}");
    Ok(vec![
        with_program(parts, tools, "coredns", "coredns:latest")?,
        with_program(parts, tools, "agnhost", &e2e("agnhost:2.66.1"))?,
        of_base(parts, &e2e("busybox:1.37.0-2"), "")?,
        of_base(parts, &e2e("nonroot:1.5"), "1234")?,
        of_base(parts, &e2e("glibc-dns-testing:2.1.1"), "")?,
        no_new_privs(parts)?,
        web_server(parts, &e2e("nginx:1.27.0-2"), 80)?,
        web_server(parts, &e2e("nginx:1.28.0-2"), 80)?,
        pause_of(parts, "registry.k8s.io/pause:3.10.2")?,
    ])
}

fn of_base(parts: &Path, name: &str, user: &str) -> Result<Image, ImageError> {
    let mut config = Config {
        user: user.to_owned(),
        ..shell(&["sh"])
    };
    // Else two images of the same files would be one image.
    config.env.push(format!("IMAGE={name}"));
    Ok(Image {
        name: name.to_owned(),
        layers: vec![base(parts, Compression::Gzip)?],
        config,
    })
}

/// A static program of Go's over the base, which is what runs.
fn with_program(
    parts: &Path,
    tools: &Path,
    program: &str,
    name: &str,
) -> Result<Image, ImageError> {
    let file = tools.join(program);
    let bytes = std::fs::read(&file).map_err(super::at("reading", &file))?;
    let mut top = Layer::new(Compression::Zstd);
    top.file(program, 0o755, bytes)?;
    let mut config = Config {
        entrypoint: vec![format!("/{program}")],
        env: strings(&[PATH]),
        ..Config::default()
    };
    if program == "agnhost" {
        config.cmd = strings(&["pause"]);
        top.symlink("agnhost-2", "agnhost")?;
        top.dir("uploads", 0o755)?;
    }
    Ok(Image {
        name: name.to_owned(),
        layers: vec![base(parts, Compression::Gzip)?, top],
        config,
    })
}

/// A set-user-ID program that says as whom it runs.
fn no_new_privs(parts: &Path) -> Result<Image, ImageError> {
    let mut image = of_base(parts, &format!("{E2E}/nonewprivs:1.4"), "")?;
    let mut top = Layer::new(Compression::Gzip);
    for dir in ["usr", "usr/local", "usr/local/bin"] {
        top.dir(dir, 0o755)?;
    }
    top.file("usr/local/bin/nnp", 0o4755, program(parts, "nonewprivs")?)?;
    image.layers.push(top);
    image.config.cmd = strings(&["nnp"]);
    Ok(image)
}
