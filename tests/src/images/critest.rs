//! The images the CRI's own validation suite, critest, asks for. They lie in the test registry
//! below the name of the registry critest has them from, behind mirrors of that name
//! ([`crate::conformance::MIRRORED`]). What each must hold is read from critest's specs.
//! Not here: the one image critest names by its upstream digest.

use std::path::Path;

use super::{
    Compression, Config, Image, ImageError, Layer,
    base::{base, shell, strings, web_server},
};

pub(super) const E2E: &str = "registry.k8s.io/e2e-test-images";
const CRI_TOOLS: &str = "gcr.io/k8s-staging-cri-tools";

/// The specs on supplementary groups want user 1000 in these and no others.
const GROUP: &str = "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\n\
    group-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n";

/// All of them.
///
/// # Errors
/// If a part is missing.
pub(super) fn all(parts: &Path) -> Result<Vec<Image>, ImageError> {
    let tools = |name: &str| format!("{CRI_TOOLS}/{name}");
    let mut images = vec![
        of_base(parts, format!("{E2E}/busybox:1.29-2"), shell(&["sh"]))?,
        web_server(parts, &format!("{E2E}/nginx:1.14-2"), 80)?,
        httpd(parts)?,
        no_new_privs(parts)?,
        web_server(parts, &tools("hostnet-nginx-amd64:latest"), 12003)?,
    ];
    for host in ["registry.k8s.io", "k8s.gcr.io"] {
        images.push(pause_of(parts, &format!("{host}/pause:3.9"))?);
    }
    for (name, file) in [
        ("test-image-tag:test", "test"),
        ("test-image-tag:all", "all"),
        ("test-image-latest:latest", "test-image-latest"),
        ("test-image-1:latest", "test-image-1"),
        ("test-image-2:latest", "test-image-2"),
        ("test-image-3:latest", "test-image-3"),
        // One image of three tags.
        ("test-image-tags:1", "same-image"),
        ("test-image-tags:2", "same-image"),
        ("test-image-tags:3", "same-image"),
    ] {
        images.push(with_file(parts, tools(name), file)?);
    }
    for (name, user) in [
        ("test-image-user-uid:latest", "1002"),
        ("test-image-user-username:latest", "www-data"),
        ("test-image-user-uid-group:latest", "1003:1004"),
        ("test-image-user-username-group:latest", "www-data:1004"),
        ("test-image-predefined-group:latest", "1000"),
    ] {
        let config = Config {
            user: user.to_owned(),
            ..shell(&["sh"])
        };
        let mut image = of_base(parts, tools(name), config)?;
        if user == "1000" {
            // The base has that user in a further group.
            let mut groups = Layer::new(Compression::Gzip);
            groups.dir("etc", 0o755)?.file("etc/group", 0o644, GROUP)?;
            image.layers.push(groups);
        }
        images.push(image);
    }
    Ok(images)
}

fn of_base(parts: &Path, name: String, config: Config) -> Result<Image, ImageError> {
    Ok(Image {
        name,
        layers: vec![base(parts, Compression::Gzip)?],
        config,
    })
}

/// The base and an empty file, by which images differ.
fn with_file(parts: &Path, name: String, file: &str) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.file(file, 0o644, "")?;
    let mut image = of_base(parts, name, shell(&["sh"]))?;
    image.layers.push(top);
    Ok(image)
}

/// A web server that names itself in its log: busybox has one called httpd.
fn httpd(parts: &Path) -> Result<Image, ImageError> {
    let mut site = Layer::new(Compression::Gzip);
    site.dir("var", 0o755)?.dir("var/www", 0o755)?;
    site.file("var/www/index.html", 0o644, "<h1>It works</h1>\n")?;
    let start = "echo 'httpd: serving /var/www at port 80' && exec httpd -f -vv -p 80 -h /var/www";
    let mut image = of_base(
        parts,
        format!("{E2E}/httpd:2.4.39-4"),
        shell(&["sh", "-c", start]),
    )?;
    image.layers.push(site);
    Ok(image)
}

/// A set-user-ID program that says as whom it runs.
fn no_new_privs(parts: &Path) -> Result<Image, ImageError> {
    let mut top = Layer::new(Compression::Gzip);
    top.file("nonewprivs", 0o4755, program(parts, "nonewprivs")?)?;
    let config = Config {
        entrypoint: strings(&["/nonewprivs"]),
        ..Config::default()
    };
    let mut image = of_base(parts, format!("{E2E}/nonewprivs:1.3"), config)?;
    image.layers.push(top);
    Ok(image)
}

/// One program and nothing else; the same from two registries.
pub(super) fn pause_of(parts: &Path, name: &str) -> Result<Image, ImageError> {
    let mut only = Layer::new(Compression::Gzip);
    only.file("pause", 0o755, program(parts, "pause")?)?;
    Ok(Image {
        name: name.to_owned(),
        layers: vec![only],
        config: Config {
            entrypoint: strings(&["/pause"]),
            user: "65535:65535".to_owned(),
            workdir: "/".to_owned(),
            ..Config::default()
        },
    })
}

pub(super) fn program(parts: &Path, name: &str) -> Result<Vec<u8>, ImageError> {
    let path = parts.join("programs").join(name);
    std::fs::read(&path).map_err(super::at("reading", &path))
}
