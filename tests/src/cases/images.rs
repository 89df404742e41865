//! Images from real and from hostile registries, and what containers see of them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use bulkhead_proto::cri::{
    AuthConfig, Image, ImageFsInfoRequest, ImageStatusRequest, LinuxContainerResources,
    ListImagesRequest, PullImageRequest, RemoveImageRequest,
};
use tonic::{Code, Status};

use super::{BUSYBOX, image};
use crate::{
    Failure, Outcome, check,
    cri::{Cri, pod, script, spec},
    host,
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("images", pulled_listed_and_removed_with_their_layers),
        test!("images", every_odd_file_type_arrives),
        test!("images", hundreds_of_layers_in_a_pod_with_one_cpu),
        test!("images", registries_with_credentials),
        test!("images", registries_that_fail_or_lie),
    ]
}

async fn status(cri: &Cri, name: &str) -> Result<Option<Image>, Status> {
    let request = ImageStatusRequest {
        image: Some(spec(name)),
        verbose: false,
    };
    Ok(cri
        .images
        .clone()
        .image_status(request)
        .await?
        .into_inner()
        .image)
}

async fn remove(cri: &Cri, name: &str) -> Result<(), Status> {
    let request = RemoveImageRequest {
        image: Some(spec(name)),
    };
    cri.images.clone().remove_image(request).await.map(drop)
}

async fn pulled_listed_and_removed_with_their_layers(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let layers = context.host.state_dir().join("images/layers");
    let count = || -> Result<usize, Failure> { Ok(fs::read_dir(&layers)?.count()) };
    // Other images share these layers, and may have been pulled by other tests.
    let list = ListImagesRequest { filter: None };
    for other in cri
        .images
        .clone()
        .list_images(list)
        .await?
        .into_inner()
        .images
    {
        remove(cri, &other.id).await?;
    }
    for name in [image("bulk"), image("busybox-zstd"), image("busybox-plain")] {
        remove(cri, &name).await?;
        check!(
            status(cri, &name).await?.is_none(),
            "{name} is listed before its pull"
        );
        let before = count()?;
        // Two pulls at once share the work.
        let (one, two) = tokio::join!(cri.pull(&name), cri.pull(&name));
        let (one, two) = (one?, two?);
        check!(one == two && one.starts_with("sha256:"), "{one} {two}");
        let found = status(cri, &name)
            .await?
            .ok_or("not listed after its pull")?;
        check!(found.id == one && found.size > 0, "{found:?}");
        check!(
            found.repo_tags == [name.clone()] && found.repo_digests.len() == 1,
            "{found:?}"
        );
        let by_id = status(cri, &one).await?.ok_or("not found by id")?;
        let by_digest = status(cri, &found.repo_digests[0])
            .await?
            .ok_or("not found by digest")?;
        check!(
            by_id.id == one && by_digest.id == one,
            "{by_id:?} {by_digest:?}"
        );
        // By digest, the same image again.
        check!(
            cri.pull(&found.repo_digests[0]).await? == one,
            "another image by digest"
        );
        let list = cri
            .images
            .clone()
            .list_images(ListImagesRequest { filter: None })
            .await?;
        check!(
            list.into_inner()
                .images
                .iter()
                .filter(|i| i.id == one)
                .count()
                == 1,
            "list"
        );
        check!(count()? > before, "no layer file for {name}");
        remove(cri, &name).await?;
        check!(status(cri, &one).await?.is_none(), "still there by id");
        check!(count()? == before, "layers of {name} are left");
        remove(cri, &name).await?;
    }
    let info = cri
        .images
        .clone()
        .image_fs_info(ImageFsInfoRequest {})
        .await?
        .into_inner();
    let first = info
        .image_filesystems
        .first()
        .ok_or("no image file system")?;
    let mount = first.fs_id.clone().unwrap_or_default().mountpoint;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    check!(
        mounts.lines().any(|l| l.split(' ').nth(4) == Some(&mount)),
        "{mount} is no mount"
    );
    check!(
        first.used_bytes.is_some() && first.timestamp > 0,
        "{first:?}"
    );
    Ok(())
}

async fn every_odd_file_type_arrives(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let odd = image("odd");
    cri.pull(&odd).await?;
    let config = pod("odd");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("main", &odd, "sleep 1000"))
        .await?;
    let long = "n".repeat(255);
    let deep = (0..40)
        .map(|_| "deep-directory")
        .collect::<Vec<_>>()
        .join("/");
    for (what, test) in [
        ("hard link", "[ $(stat -c %i plain) = $(stat -c %i hard) ] && [ $(stat -c %h plain) = 2 ]".to_owned()),
        ("mode", "[ $(stat -c %a plain) = 640 ]".to_owned()),
        ("symlink", "[ $(readlink soft) = plain ] && [ \"$(cat absolute)\" = plain ]".to_owned()),
        ("dangling link", "[ $(readlink dangling) = /no/such/file ]".to_owned()),
        ("fifo", "[ -p fifo ]".to_owned()),
        ("character device", "[ \"$(stat -c '%F %t %T' null)\" = 'character special file 1 3' ]".to_owned()),
        ("block device", "[ \"$(stat -c '%F %t %T' block)\" = 'block special file 7 0' ]".to_owned()),
        ("setuid", "[ $(stat -c %a setuid) = 4755 ] && [ $(stat -c %a sticky) = 1644 ]".to_owned()),
        ("large owner", "[ $(stat -c %u:%g owned) = 4000000000:4000000000 ]".to_owned()),
        ("empty file", "[ -f empty ] && [ ! -s empty ]".to_owned()),
        ("long name", format!("[ \"$(cat {long})\" = 'long name' ]")),
        ("deep path", format!("[ \"$(cat {deep}/file)\" = deep ]")),
        ("unicode name", "[ \"$(cat 'ünïcödé ☃')\" = unicode ]".to_owned()),
        ("file with xattrs", "[ \"$(cat xattr)\" = xattr ]".to_owned()),
        ("zeros", "[ $(stat -c %s zeros) = 33554432 ] && [ $(head -c 100000 zeros | tr -d '\\0' | wc -c) = 0 ]".to_owned()),
        ("large file", "[ $(stat -c %s large) = 3145728 ]".to_owned()),
        ("directory without an entry", "[ $(stat -c %a shared) = 1777 ] && [ $(cat shared/late) = late ]".to_owned()),
        ("whiteout", "[ ! -e gone ] && [ ! -e .wh.gone ]".to_owned()),
        ("opaque directory", "[ -e opaque/shown ] && [ ! -e opaque/hidden ]".to_owned()),
        ("file replaced by directory", "[ \"$(cat replaced/by)\" = 'a directory' ]".to_owned()),
        ("time", "[ $(stat -c %Y plain) = 1767225600 ]".to_owned()),
    ] {
        let done = cri.exec(&made, &["/bin/sh", "-c", &format!("cd /odd && {test}")]).await?;
        check!(done.exit_code == 0, "{what}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(cri.remove_pod(&id).await?)
}

/// More layers than a guest with one processor could have disks, which was the limit once.
async fn hundreds_of_layers_in_a_pod_with_one_cpu(context: &mut Context) -> Outcome {
    let (many, more) = (image("layers100"), image("layers250"));
    for image in [&many, &more] {
        context.cri.pull(image).await?;
    }
    context.cri.pull(BUSYBOX).await?;
    let mut config = pod("layers");
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 100_000,
        ..LinuxContainerResources::default()
    });
    let cri = &context.cri;
    let id = cri.run_pod(config.clone()).await?;
    let first = cri
        .run(&id, &config, script("first", &many, "sleep 1000"))
        .await?;
    check!(cri.shell(&first, "nproc").await?.trim() == "1", "one CPU");
    layers_are_right(cri, &first, "layers100", 100).await?;
    let second = cri
        .run(&id, &config, script("second", &more, "sleep 1000"))
        .await?;
    layers_are_right(cri, &second, "layers250", 250).await?;
    // Where layers are is known to the daemon that comes after.
    context.host.stop_daemon().await?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    let cri = &context.cri;
    let third = cri
        .run(&id, &config, script("third", &many, "sleep 1000"))
        .await?;
    // A serial has no line end.
    let disks = "for file in /sys/block/*/serial; do cat $file; echo; done | grep -c ^p";
    let count = cri.shell(&third, disks).await?;
    // The first image's, and two for the second's.
    check!(count.trim() == "3", "{count} disks of layers");
    for made in [&first, &second] {
        cri.stop(made, 0).await?;
        cri.remove(made).await?;
    }
    layers_are_right(cri, &third, "layers100", 100).await?;
    let count = cri.shell(&third, disks).await?;
    check!(count.trim() == "1", "{count} disks of layers are left");
    cri.stop(&third, 0).await?;
    cri.remove(&third).await?;
    // The pod still takes containers after all went.
    let after = cri
        .run(&id, &config, script("after", BUSYBOX, "sleep 1000"))
        .await?;
    let count = cri.shell(&after, disks).await?;
    check!(count.trim() == "1", "{count} disks of layers at the end");
    Ok(cri.remove_pod(&id).await?)
}

/// What `recipes` puts into so many layers.
async fn layers_are_right(cri: &Cri, container: &str, name: &str, layers: usize) -> Outcome {
    let top = cri.shell(container, "cat /layers/top /layers/name").await?;
    check!(
        top == format!("{}\n{name}\n", layers - 1),
        "the top layer wins: {top}"
    );
    // A file of each but the lowest, and two of all, less those that later layers took away.
    let count = cri.shell(container, "ls /layers | wc -l").await?;
    let left = layers - 1 + 2 - (layers - 1) / 10;
    check!(count.trim() == left.to_string(), "{count}, not {left}");
    let contents =
        "cd /layers && for file in [0-9]*; do read line <$file; [ $line = $file ] || exit 1; done";
    cri.shell(container, contents).await?;
    let gone = "[ -e /layers/1 ] && [ ! -e /layers/5 ] && [ ! -e /layers/85 ]";
    cri.shell(container, gone).await?;
    Ok(())
}

async fn registries_with_credentials(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let dir = context.host.dir();
    // bcrypt of "secret", cost 5.
    let hash = "$2b$05$qhc6.s6.e/6LJ1XNvHE/lu/rSARj8CeihRTyanMURw1IwH4slx6zW";
    let file = dir.join("htpasswd");
    fs::write(&file, format!("someone:{hash}\n"))?;
    let storage = std::env::var("BULKHEAD_REGISTRY")?;
    let more = format!(
        "auth: {{htpasswd: {{realm: tests, path: {}}}}}\n",
        file.display()
    );
    let mut registry = host::registry(dir, "127.0.0.1:5001", &storage, &more).await?;
    let pull = async |password: &str| {
        let request = PullImageRequest {
            image: Some(spec("127.0.0.1:5001/busybox:latest")),
            auth: (!password.is_empty()).then(|| AuthConfig {
                username: "someone".to_owned(),
                password: password.to_owned(),
                ..AuthConfig::default()
            }),
            sandbox_config: None,
        };
        cri.images.clone().pull_image(request).await
    };
    let denied = [Code::Unauthenticated, Code::PermissionDenied];
    let none = pull("").await;
    check!(
        none.as_ref().is_err_and(|s| denied.contains(&s.code())),
        "{none:?}"
    );
    let wrong = pull("wrong").await;
    check!(
        wrong.as_ref().is_err_and(|s| denied.contains(&s.code())),
        "{wrong:?}"
    );
    let right = pull("secret").await;
    registry.kill()?;
    registry.wait()?;
    right?;
    remove(cri, "127.0.0.1:5001/busybox:latest").await?;
    let down = pull("secret").await;
    check!(
        down.as_ref().is_err_and(|s| s.code() == Code::Unavailable),
        "{down:?}"
    );
    Ok(())
}

/// A registry of one bad habit per repository.
fn bad_registry(listener: &TcpListener, over: &AtomicBool) {
    for stream in listener.incoming() {
        let (Ok(mut stream), false) = (stream, over.load(Ordering::Relaxed)) else {
            return;
        };
        let mut reader = BufReader::new(&stream);
        let (mut first, mut line) = (String::new(), String::new());
        if reader.read_line(&mut first).is_err() {
            continue;
        }
        while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
            line.clear();
        }
        let answer = |status: &str, headers: &str, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
                body.len()
            )
        };
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = if first.contains("/v2/ ") {
            answer("200 OK", "", "{}")
        } else if first.contains("/teapot/") {
            answer("500 Internal Server Error", "", "{}")
        } else if first.contains("/busy/") {
            answer("429 Too Many Requests", "Retry-After: 1\r\n", "{}")
        } else if first.contains("/liar/blobs/") {
            answer("200 OK", "", "this is not what the digest says")
        } else if first.contains("/liar/") {
            let manifest = format!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
                "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":32}},
                "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{}","size":32}}]}}"#,
                "b".repeat(64)
            );
            answer("200 OK", kind, &manifest)
        } else if first.contains("/garbage/") {
            answer("200 OK", kind, "{\"schemaVersion\": \"no\"")
        } else {
            answer(
                "404 Not Found",
                "",
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#,
            )
        };
        // Who hung up already does not matter.
        let _ = stream.write_all(text.as_bytes());
    }
}

async fn registries_that_fail_or_lie(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let over = Arc::new(AtomicBool::new(false));
    let server = thread::spawn({
        let over = over.clone();
        move || bad_registry(&listener, &over)
    });
    let layers = context.host.state_dir().join("images/layers");
    let files = || -> Result<Vec<_>, Failure> {
        let mut names: Vec<_> = fs::read_dir(&layers)?
            .map(|entry| entry.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        Ok(names)
    };
    let before = files()?;
    let mut wrong = Vec::new();
    for (name, codes) in [
        ("teapot", &[Code::Unavailable, Code::Internal][..]),
        ("busy", &[Code::Unavailable, Code::ResourceExhausted][..]),
        ("liar", &[Code::DataLoss, Code::Internal][..]),
        ("garbage", &[Code::DataLoss, Code::FailedPrecondition][..]),
        ("nothing", &[Code::NotFound][..]),
    ] {
        let answer = cri.pull(&format!("{address}/{name}:latest")).await;
        match &answer {
            Err(status) if codes.contains(&status.code()) && status.message().contains(name) => {}
            _ => wrong.push(format!("{name}: {answer:?}")),
        }
    }
    over.store(true, Ordering::Relaxed);
    drop(std::net::TcpStream::connect(address));
    server.join().map_err(|_| "the bad registry panicked")?;
    check!(wrong.is_empty(), "{wrong:#?}");
    check!(files()? == before, "files are left");
    for bad in [
        "",
        "UPPER/case",
        "a b",
        "127.0.0.1:5000/x:bad tag",
        "x@sha256:short",
    ] {
        let answer = cri.pull(bad).await;
        check!(
            answer
                .as_ref()
                .is_err_and(|s| s.code() == Code::InvalidArgument),
            "{bad:?}: {answer:?}"
        );
    }
    Ok(())
}
