//! What most images begin with: busybox in the lowest layer, a configuration that runs a command, and a
//! web server.

use std::path::Path;

use super::{Compression, Config, Image, ImageError, Layer};

pub(super) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    default-user:x:1000:1000::/home/default-user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nusers:x:100:default-user\n\
    default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\nnogroup:x:65534:\n";

/// The lowest layer of them all: busybox with its applets, the files programs look for.
pub(super) fn base(parts: &Path, compression: Compression) -> Result<Layer, ImageError> {
    let mut layer = Layer::new(compression);
    for (dir, mode) in [
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("var", 0o755),
        ("var/log", 0o755),
        ("var/run", 0o755),
    ] {
        layer.dir(dir, mode)?;
    }
    layer
        .file("etc/passwd", 0o644, PASSWD)?
        .file("etc/group", 0o644, GROUP)?;
    layer.tree(&parts.join("busybox"), "")?;
    Ok(layer)
}

pub(super) fn shell(cmd: &[&str]) -> Config {
    Config {
        cmd: strings(cmd),
        env: strings(&[PATH]),
        ..Config::default()
    }
}

/// The programs and libraries of Debian's packages, each unpacked in a folder of `packages`.
pub(super) fn unpacked(
    layer: &mut Layer,
    packages: &Path,
    names: &[&str],
) -> Result<(), ImageError> {
    for package in names {
        for top in ["lib", "lib64", "usr/lib", "bin", "sbin", "usr/bin"] {
            let source = packages.join(package).join(top);
            if source.is_dir() {
                for parent in ["usr", top].iter().filter(|dir| top.starts_with(**dir)) {
                    layer.dir(parent, 0o755)?;
                }
                layer.tree(&source, top)?;
            }
        }
    }
    Ok(())
}

/// nginx of Debian over the busybox base: a layer of libraries, one of nginx, one of its site.
pub(super) fn web_server(parts: &Path, name: &str, port: u16) -> Result<Image, ImageError> {
    let packages = parts.join("nginx");
    let needed = ["libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"];
    let mut libraries = Layer::new(Compression::Gzip);
    unpacked(&mut libraries, &packages, &needed)?;
    let mut server = Layer::new(Compression::Zstd);
    server.dir("usr", 0o755)?.dir("usr/sbin", 0o755)?;
    server.tree(&packages.join("nginx/usr/sbin"), "usr/sbin")?;
    server.dir("etc", 0o755)?.dir("etc/nginx", 0o755)?;
    server.tree(&packages.join("nginx-common/etc/nginx"), "etc/nginx")?;
    server
        .dir("var", 0o755)?
        .dir("var/lib", 0o755)?
        .dir("var/lib/nginx", 0o755)?;
    server.dir("var/log", 0o755)?.dir("var/log/nginx", 0o755)?;
    let mut site = Layer::new(Compression::Gzip);
    site.dir("var", 0o755)?
        .dir("var/www", 0o755)?
        .dir("var/www/html", 0o755)?;
    site.file(
        "var/www/html/index.html",
        0o644,
        "<h1>Welcome to nginx in a microVM</h1>\n",
    )?;
    site.dir("etc", 0o755)?.dir("etc/nginx", 0o755)?;
    // Logs go where the runtime collects them.
    site.file(
        "etc/nginx/nginx.conf",
        0o644,
        format!(
            "user www-data;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log /dev/stderr warn;\n\
             events {{ worker_connections 256; }}\n\
             http {{\n  include /etc/nginx/mime.types;\n  access_log /dev/stdout;\n\
             \x20 server {{ listen {port}; listen [::]:{port}; root /var/www/html; index index.html; }}\n}}\n"
        ),
    )?;
    Ok(Image {
        name: name.to_owned(),
        layers: vec![base(parts, Compression::Gzip)?, libraries, server, site],
        config: Config {
            stop_signal: "SIGQUIT".to_owned(),
            ..shell(&["nginx", "-g", "daemon off;"])
        },
    })
}
