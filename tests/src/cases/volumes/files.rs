//! Directories, files, memory; and what is refused.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::Path,
};

use bulkhead_proto::cri::{Mount, MountPropagation};
use tonic::Code;

use super::{
    super::BUSYBOX,
    support::{Scratch, check_status, following, mount, read_only, run, text, with},
};
use crate::{
    Failure, Outcome, check,
    cri::{pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("volumes", directories_files_and_memory, LIMIT * 2),
        test!("volumes", one_volume_mounted_in_many_ways_is_one, LIMIT * 2),
        test!("volumes", what_cannot_be_leaves_nothing),
    ]
}

/// FIFOs, locks and bytes meet between the containers of a pod, however each has the volume; what is
/// read-only in one stays so.
async fn one_volume_mounted_in_many_ways_is_one(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    for handler in ["kvm", "host"] {
        let scratch = Scratch::new(&format!("one-{handler}"))?;
        let data = scratch.dir("data")?;
        let sub = scratch.dir("data/sub")?;
        fs::write(sub.join("file"), "whole")?;
        for dir in [&data, &sub] {
            run("mkfifo", &[&text(&dir.join("pipe"))])?;
            fs::write(dir.join("lock"), "")?;
        }
        // With a mount below it, read-only is the top's alone, which no mount of the guest can keep.
        let deep = scratch.dir("deep")?;
        fs::write(deep.join("file"), "deep")?;
        let below = scratch.dir("deep/below")?;
        run("mount", &["-t", "tmpfs", "none", &text(&below)])?;

        let config = pod(&format!("one-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let ways = [
            ("plain", vec![mount(&data, "/data"), mount(&deep, "/deep")]),
            (
                "read-only",
                vec![
                    read_only(mount(&data, "/data")),
                    read_only(mount(&deep, "/deep")),
                ],
            ),
            ("follows", vec![following(mount(&data, "/data"))]),
            ("part", vec![mount(&sub, "/data/sub")]),
        ];
        let mut containers = Vec::new();
        for (name, mounts) in ways {
            let task = match name {
                "plain" => "flock /data/sub/lock sleep 1000",
                _ => "sleep 1000",
            };
            let main = with(script(name, BUSYBOX, task), mounts);
            let main = cri.run(&id, &config, main).await?;
            if name == "plain" {
                // Looked up first by the plain mount, before the others are there.
                let held = "while flock -n /data/sub/lock true; do sleep 0.1; done; ls -lR /data";
                cri.shell(&main, held).await?;
            }
            containers.push((name, main));
        }
        let (_, plain) = &containers[0];
        for (name, other) in &containers[1..] {
            let held = "flock -n /data/sub/lock true && echo free || echo held";
            let seen = cri.shell(other, held).await?;
            check!(seen == "held\n", "{handler}: the lock of {name}: {seen}");
            let read = "timeout 20 cat /data/sub/pipe";
            let (read, _) = tokio::try_join!(
                cri.shell(other, read),
                cri.shell(plain, "timeout 20 sh -c 'echo met > /data/sub/pipe'"),
            )?;
            check!(read == "met\n", "{handler}: the pipe of {name}: {read}");
            let number = "stat -c %i /data/sub/file";
            let (a, b) = (
                cri.shell(plain, number).await?,
                cri.shell(other, number).await?,
            );
            check!(a == b, "{handler}: {name} has {b} for {a}");
            let linked = cri
                .shell(
                    other,
                    "ln /data/sub/file /data/sub/link 2>&1 && rm /data/sub/link; \
                     echo $HOSTNAME >> /data/sub/file 2>/dev/null && echo written || echo refused",
                )
                .await?;
            let read_only = *name == "read-only";
            check!(
                match read_only {
                    true =>
                        linked.contains("Read-only file system") && linked.ends_with("refused\n"),
                    false => linked == "written\n",
                },
                "{handler}: {name}: {linked}"
            );
        }
        // The file is known by both, and is written by one.
        let (_, reader) = &containers[1];
        for (container, expected) in [(reader, "refused\n"), (plain, "written\n")] {
            for _ in 0..2 {
                let write = "cat /deep/file >/dev/null; echo x 2>/dev/null >> /deep/file && echo written || echo refused";
                let seen = cri.shell(container, write).await?;
                check!(seen.ends_with(expected), "{handler}: {seen} for {expected}");
            }
        }
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn directories_files_and_memory(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("kinds")?;
    let data = scratch.dir("data")?;
    fs::write(data.join("given"), "from the host")?;
    chown(data.join("given"), Some(1234), Some(5678))?;
    fs::set_permissions(data.join("given"), fs::Permissions::from_mode(0o640))?;
    symlink(&data, scratch.0.join("link"))?;
    let hosts = scratch.0.join("hosts");
    fs::write(&hosts, "10.9.8.7 by-the-kubelet\n")?;
    let log = scratch.0.join("termination-log");
    fs::write(&log, "")?;
    let tree = scratch.dir("tree")?;
    let below = scratch.dir("tree/below")?;
    run("mount", &["-t", "tmpfs", "none", &text(&below)])?;
    let later = scratch.dir("later")?;
    run("mount", &["--bind", &text(&later), &text(&later)])?;
    run("mount", &["--make-shared", &text(&later)])?;
    scratch.dir("later/point")?;
    // As the kubelet makes them: an emptyDir in memory, and a subPath of it.
    let kubelet = scratch.dir("pods/uid-kinds/volumes/kubernetes.io~empty-dir/cache")?;
    run(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            "size=2m,mode=2770,gid=77",
            "none",
            &text(&kubelet),
        ],
    )?;
    fs::create_dir(kubelet.join("part"))?;
    let part = scratch.dir("pods/uid-kinds/volume-subpaths/cache/main/0")?;
    run(
        "mount",
        &["--bind", &text(&kubelet.join("part")), &text(&part)],
    )?;

    let config = pod("kinds");
    let id = cri.run_pod(config.clone()).await?;
    let recursive = Mount {
        recursive_read_only: true,
        ..read_only(mount(&tree, "/rro"))
    };
    let mounts = vec![
        mount(&scratch.0.join("link"), "/data"),
        mount(&hosts, "/etc/hosts"),
        mount(&log, "/dev/termination-log"),
        read_only(mount(&data, "/data/nested/ro")),
        read_only(mount(&tree, "/ro")),
        recursive,
        mount(&later, "/private"),
        following(mount(&later, "/follows")),
        mount(&kubelet, "/cache"),
        mount(Path::new("/dev/zero"), "/null"),
    ];
    let main = with(script("main", BUSYBOX, "sleep 1000"), mounts.clone());
    let main = cri.run(&id, &config, main).await?;
    let other = vec![mount(&data, "/data"), mount(&part, "/part")];
    let other = with(script("other", BUSYBOX, "sleep 1000"), other);
    let other = cri.run(&id, &config, other).await?;
    check!(
        cri.status(&main).await?.mounts == mounts,
        "the mounts as told"
    );

    // Owners and modes go both ways, and so do bytes; a link resolves where it is read.
    let seen = cri
        .shell(
            &main,
            "stat -c '%u %g %a' /data/given; cat /data/given /etc/hosts; echo done > /dev/termination-log; \
             echo back > /data/new; chown 4321:8765 /data/new; chmod 4750 /data/new; \
             ln -s ../../../../../etc/hosts /data/escape; cat /data/escape; head -c 3 /null | od -An -tx1",
        )
        .await?;
    let expected =
        "1234 5678 640\nfrom the host10.9.8.7 by-the-kubelet\n10.9.8.7 by-the-kubelet\n 00 00 00\n";
    check!(seen == expected, "{seen:?}");
    let new = fs::metadata(data.join("new"))?;
    let owner = (new.uid(), new.gid(), new.mode() & 0o7777);
    check!(owner == (4321, 8765, 0o4750), "{owner:?}");
    check!(fs::read_to_string(&log)? == "done\n", "the termination log");
    let target = fs::read_link(data.join("escape"))?;
    check!(
        target == Path::new("../../../../../etc/hosts"),
        "{target:?}"
    );
    check!(
        cri.shell(&other, "cat /data/new").await? == "back\n",
        "the other container"
    );
    fs::write(data.join("new"), "changed")?;
    check!(
        cri.shell(&main, "cat /data/new").await? == "changed",
        "a change of the host"
    );

    // Read-only is the top, or all of it.
    let tried = "for f in /data/nested/ro/x /ro/x /ro/below/x /rro/x /rro/below/x; do \
        touch $f 2>/dev/null && echo wrote $f || true; done";
    let wrote = cri.shell(&main, tried).await?;
    check!(wrote == "wrote /ro/below/x\n", "{wrote:?}");
    check!(below.join("x").exists(), "not written on the host");

    // Mounts of the host follow where it was asked, and the container's stay its own.
    let point = later.join("point");
    run("mount", &["-t", "tmpfs", "none", &text(&point)])?;
    fs::write(point.join("seen"), "")?;
    let seen = cri.shell(&main, "ls /private/point /follows/point").await?;
    check!(
        seen == "/follows/point:\nseen\n\n/private/point:\n",
        "{seen:?}"
    );

    // Memory: shared by the containers, with its size, nothing of it on the host.
    let seen = cri
        .shell(
            &main,
            "stat -c '%a %g' /cache; echo x > /cache/part/file; df -k /cache | tail -1 | tr -s ' ' | cut -d' ' -f2",
        )
        .await?;
    check!(seen == "2770 77\n2048\n", "{seen:?}");
    check!(
        cri.shell(&other, "cat /part/file").await? == "x\n",
        "the part"
    );
    check!(!kubelet.join("part/file").exists(), "on the host");

    // What one container alone had goes with it; the share's other mounts stay.
    let pod_dir = context.host.run_dir().join("pods").join(&id);
    let shares = || -> Result<usize, Failure> {
        // Mounts are the VMM's alone; the host has the places for them.
        let list = fs::read_to_string("/proc/self/mountinfo")?;
        let within = format!("{}/vm/share/", pod_dir.display());
        check_status(
            !list.contains(&within),
            "a volume",
            "is mounted on the host",
        )?;
        Ok(fs::read_dir(pod_dir.join("shared")).map_or(0, Iterator::count))
    };
    check!(shares()? > 5, "{} places", shares()?);
    cri.shell(
        &main,
        "dd if=/dev/zero of=/data/last bs=64k count=16 2>/dev/null",
    )
    .await?;
    cri.stop(&main, 0).await?;
    cri.remove(&main).await?;
    check!(shares()? == 1, "{} places left", shares()?);
    check!(
        cri.shell(&other, "cat /data/new").await? == "changed",
        "after the removal"
    );
    cri.remove_pod(&id).await?;
    check!(
        fs::metadata(data.join("last"))?.len() == 1 << 20,
        "the last writes"
    );
    check!(
        shares()? == 0 && data.join("given").exists(),
        "after the pod"
    );
    Ok(())
}

async fn what_cannot_be_leaves_nothing(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("refused")?;
    let good = scratch.dir("good")?;
    fs::write(good.join("file"), "")?;
    symlink("nowhere", scratch.0.join("broken"))?;
    let other_socket = scratch.0.join("other.sock");
    let _listener = UnixListener::bind(&other_socket)?;
    let config = pod("refused-volumes");
    let id = cri.run_pod(config.clone()).await?;
    let recursive = |mount: Mount| Mount {
        recursive_read_only: true,
        ..mount
    };
    let cases = [
        (
            "a link that leads nowhere",
            mount(&scratch.0.join("broken"), "/x"),
            Code::NotFound,
        ),
        (
            "a source below a file",
            mount(&good.join("file/x"), "/x"),
            Code::InvalidArgument,
        ),
        (
            "a relative source",
            Mount {
                host_path: "x".to_owned(),
                ..mount(&good, "/x")
            },
            Code::InvalidArgument,
        ),
        (
            "the container's root",
            mount(&good, "/x/.."),
            Code::InvalidArgument,
        ),
        (
            "recursive and not read-only",
            recursive(mount(&good, "/x")),
            Code::InvalidArgument,
        ),
        (
            "recursive and following",
            recursive(read_only(following(mount(&good, "/x")))),
            Code::InvalidArgument,
        ),
        (
            "mounts that come back",
            Mount {
                propagation: MountPropagation::PropagationBidirectional.into(),
                ..mount(&good, "/x")
            },
            Code::Unimplemented,
        ),
        (
            "a socket nobody allowed",
            mount(&other_socket, "/x"),
            Code::PermissionDenied,
        ),
        // A directory on a file: only the guest can find that out, when all else is made.
        (
            "a directory on a file",
            mount(&good, "/etc/passwd"),
            Code::InvalidArgument,
        ),
    ];
    let pods = context.host.run_dir().join("pods").join(&id);
    let tree = || -> Result<(usize, usize), Failure> {
        let list = fs::read_to_string("/proc/self/mountinfo")?;
        let here = text(&pods);
        let entries = fs::read_dir(pods.join("shared"))?.count();
        Ok((
            list.lines().filter(|line| line.contains(&here)).count(),
            entries,
        ))
    };
    let before = tree()?;
    for (what, bad, code) in cases {
        let config_of = with(
            script("refused", BUSYBOX, "true"),
            vec![mount(&good, "/good"), bad],
        );
        let answer = cri.create(&id, &config, config_of).await;
        let error = answer.err().ok_or_else(|| format!("{what} was accepted"))?;
        check!(error.code() == code, "{what}: {error}");
        check!(
            tree()? == before,
            "{what} left {:?}, before {before:?}",
            tree()?
        );
    }
    // The pod is none the worse for it.
    let fine = with(
        script("fine", BUSYBOX, "sleep 1000"),
        vec![mount(&good, "/good")],
    );
    let fine = cri.run(&id, &config, fine).await?;
    cri.shell(&fine, "echo x > /good/file").await?;
    cri.remove_pod(&id).await?;
    check!(
        fs::read_to_string(good.join("file"))? == "x\n",
        "the pod's own volume"
    );
    Ok(())
}
