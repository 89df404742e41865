//! Volumes of the host in pods: files and directories, what follows the host, disks, images.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant as Clock},
};

use bulkhead_proto::cri::{
    ContainerConfig, Device, HugepageLimit, ImageSpec, Mount, MountPropagation,
};
use tokio::time::Instant;
use tonic::Code;

use super::{BUSYBOX, image, logs};
use crate::{
    Failure, Outcome, check,
    cri::{PATIENCE, container, pause, pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("volumes", directories_files_and_memory, LIMIT * 2),
        test!("volumes", a_config_map_turns_under_inotify, LIMIT * 3),
        test!("volumes", disks_images_and_sockets, LIMIT * 2),
        test!("volumes", huge_pages_are_made_within_the_limit),
        test!("volumes", what_cannot_be_leaves_nothing),
    ]
}

/// A directory of the test host's own (in memory), away with all that is mounted in it at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self, Failure> {
        let path = Path::new("/tmp").join(format!("volumes-{name}-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }

    fn dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.0.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("sh")
            .arg("-c")
            .arg("grep -o \" $0[^ ]*\" /proc/self/mountinfo | sort -ur | xargs -r umount -R -l 2>/dev/null")
            .arg(&self.0)
            .status();
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn run(program: &str, args: &[&str]) -> Result<String, Failure> {
    let done = Command::new(program).args(args).output()?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    check_status(done.status.success(), program, &complaint)?;
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn check_status(good: bool, program: &str, complaint: &str) -> Outcome {
    check!(good, "{program}: {complaint}");
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn mount(host: &Path, at: &str) -> Mount {
    Mount {
        container_path: at.to_owned(),
        host_path: text(host),
        ..Mount::default()
    }
}

fn read_only(mount: Mount) -> Mount {
    Mount {
        readonly: true,
        ..mount
    }
}

fn following(mount: Mount) -> Mount {
    Mount {
        propagation: MountPropagation::PropagationHostToContainer.into(),
        ..mount
    }
}

fn with(mut config: ContainerConfig, mounts: Vec<Mount>) -> ContainerConfig {
    config.mounts = mounts;
    config
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

/// A turn as the kubelet's AtomicWriter does it.
fn turn(root: &Path, number: usize) -> Outcome {
    let name = format!("..turn_{number}");
    let old = fs::read_link(root.join("..data"));
    fs::create_dir(root.join(&name))?;
    fs::write(root.join(&name).join("key"), number.to_string())?;
    symlink(&name, root.join("..data_tmp"))?;
    fs::rename(root.join("..data_tmp"), root.join("..data"))?;
    match old {
        Ok(old) => fs::remove_dir_all(root.join(old))?,
        Err(_) => symlink("..data/key", root.join("key"))?,
    }
    Ok(())
}

const TURNS: usize = 100;

async fn a_config_map_turns_under_inotify(context: &mut Context) -> Outcome {
    let tools = image("volume-tools");
    context.cri.pull(&tools).await?;
    let watch = ["/tools/watch-turns", "/config", "key"];
    let scratch = Scratch::new("config")?;
    let root = scratch.dir("config")?;
    turn(&root, 0)?;
    let (config, dir) = logs::logging_pod(context, "config");
    let id = context.cri.run_pod(config.clone()).await?;
    let watcher = with(
        logs::logged(container("watch", &tools, &watch), "watch.log"),
        vec![read_only(mount(&root, "/config"))],
    );
    let watcher = context.cri.run(&id, &config, watcher).await?;
    let log = dir.join("watch.log");
    let lines = || -> Result<Vec<String>, Failure> {
        let text = String::from_utf8(logs::read(&log, "stdout").unwrap_or_default())?;
        Ok(text.lines().map(str::to_owned).collect())
    };
    let deadline = Instant::now() + PATIENCE;
    while lines()?.is_empty() {
        pause(deadline, "the first content").await?;
    }
    let mut slowest = Duration::ZERO;
    for number in 1..=TURNS {
        let began = Clock::now();
        turn(&root, number)?;
        let deadline = Instant::now() + PATIENCE;
        while lines()?.len() <= number {
            let mut soon = tokio::time::interval(Duration::from_millis(5));
            soon.tick().await;
            soon.tick().await;
            check!(Instant::now() < deadline, "turn {number} was not seen");
        }
        slowest = slowest.max(began.elapsed());
    }
    let expected: Vec<String> = (0..=TURNS).map(|number| number.to_string()).collect();
    check!(lines()? == expected, "{:?}", lines()?);
    // Every turn's own events, in the order a node's kubelet makes them.
    let events = String::from_utf8(logs::read(&log, "stderr")?)?;
    let mut turned = String::new();
    for number in 1..=TURNS {
        turned.push_str(&format!(
            "made ..turn_{number}\nmade ..data_tmp\nmoved ..data\nremoved ..turn_{}\n",
            number - 1
        ));
    }
    // The last one's removal may still be on its way.
    check!(
        turned.starts_with(&events) && events.len() + 30 > turned.len(),
        "{events}"
    );
    println!(
        "    the slowest of {TURNS} turns was seen after {} ms",
        slowest.as_millis()
    );

    // What changed while no daemon ran is brought by the next one.
    context.host.kill_daemon()?;
    turn(&root, TURNS + 1)?;
    turn(&root, TURNS + 2)?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    let deadline = Instant::now() + PATIENCE;
    let last = (TURNS + 2).to_string();
    while context.cri.shell(&watcher, "cat /config/key").await? != last {
        pause(deadline, "the change to be brought").await?;
    }
    turn(&root, TURNS + 3)?;
    while lines()?.last() != Some(&(TURNS + 3).to_string()) {
        pause(deadline, "the last turn").await?;
    }
    Ok(context.cri.remove_pod(&id).await?)
}

/// A file as a block device, until it is dropped.
struct Loop(String);

impl Loop {
    fn new(file: &Path) -> Result<Self, Failure> {
        Ok(Self(run("losetup", &["-f", "--show", &text(file)])?))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

async fn disks_images_and_sockets(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("volume-tools");
    cri.pull(&tools).await?;
    let tagged = image("nginx");
    let image_id = cri.pull(&tagged).await?;
    let scratch = Scratch::new("disks")?;
    let backing = scratch.0.join("disk.img");
    fs::File::create(&backing)?.set_len(4 << 20)?;
    fs::write(scratch.0.join("start"), "")?;
    let device = Loop::new(&backing)?;
    let socket = context.host.test_socket();
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let mut question = [0; 4];
        stream.read_exact(&mut question)?;
        stream.write_all(b"the host heard ")?;
        stream.write_all(&question)
    });

    let config = pod("disks");
    let id = cri.run_pod(config.clone()).await?;
    let volume = |at: &str, sub_path: &str| Mount {
        container_path: at.to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: image_id.clone(),
            user_specified_image: tagged.clone(),
            ..ImageSpec::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Mount::default()
    };
    let mut main = with(
        script("main", &tools, "sleep 1000"),
        vec![
            volume("/image", ""),
            volume("/image-etc", "etc"),
            mount(&socket, "/run/host.sock"),
        ],
    );
    let disk = |at: &str, permissions: &str| Device {
        container_path: at.to_owned(),
        host_path: device.0.clone(),
        permissions: permissions.to_owned(),
    };
    main.devices = vec![disk("/dev/xvda", "rw"), disk("/volume", "r")];
    let main = cri.run(&id, &config, main).await?;

    let status = cri.status(&main).await?;
    let of_image = status.mounts.iter().find(|m| m.container_path == "/image");
    let told = of_image.and_then(|m| m.image.clone()).unwrap_or_default();
    check!(told.image_ref == image_id, "{told:?}");
    let seen = cri
        .shell(
            &main,
            "test -x /image/bin/sh && test -f /image-etc/passwd && test ! -e /image-etc/etc && \
             /image/bin/sh -c 'echo runs'; touch /image/x 2>/dev/null || echo refused",
        )
        .await?;
    check!(seen == "runs\nrefused\n", "{seen:?}");

    let seen = cri
        .shell(
            &main,
            "echo block | dd of=/dev/xvda bs=512 seek=8 conv=sync,fsync 2>/dev/null; \
             dd if=/volume bs=512 skip=8 count=1 2>/dev/null | head -c 5; echo; \
             dd if=/dev/zero of=/volume bs=512 count=1 2>/dev/null || echo refused",
        )
        .await?;
    check!(seen == "block\nrefused\n", "{seen:?}");
    let mut written = [0; 5];
    let mut file = fs::File::open(&device.0)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8 * 512))?;
    file.read_exact(&mut written)?;
    check!(&written == b"block", "{written:?}");
    // Not written out by the program: by the end of the pod.
    cri.shell(
        &main,
        "echo later | dd of=/dev/xvda bs=512 seek=9 conv=sync 2>/dev/null",
    )
    .await?;

    let answer = cri
        .shell(&main, "/tools/unix-talk /run/host.sock hey!")
        .await?;
    check!(answer == "the host heard hey!", "{answer:?}");
    echo.join().map_err(|_| "the echo ended badly")??;

    let missing = with(
        script("missing", &tools, "true"),
        vec![volume("/image", "not/there")],
    );
    let refused = cri.create(&id, &config, missing).await;
    let code = refused.err().map(|status| status.code());
    check!(code == Some(Code::NotFound), "a missing sub-path: {code:?}");
    cri.remove_pod(&id).await?;
    let mut file = fs::File::open(&backing)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(9 * 512))?;
    file.read_exact(&mut written)?;
    check!(&written == b"later", "{written:?}");
    Ok(())
}

async fn huge_pages_are_made_within_the_limit(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("huge")?;
    // As the kubelet prepares an emptyDir whose medium is HugePages.
    let data = scratch.dir("pods/uid-huge/volumes/kubernetes.io~empty-dir/huge")?;
    let options = "pagesize=2M,size=12M";
    let at = text(&data);
    run("mount", &["-t", "hugetlbfs", "-o", options, "none", &at])?;
    let config = pod("huge");
    let id = cri.run_pod(config.clone()).await?;
    let memory = |name| format!("grep '^{name}:' /proc/meminfo | grep -o '[0-9]*'");
    let limited = |name: &str, limit: u64| {
        let mut made = with(
            script(name, BUSYBOX, "sleep 1000"),
            vec![mount(&data, "/huge")],
        );
        let resources = made.linux.get_or_insert_default();
        let resources = resources.resources.get_or_insert_default();
        resources.hugepage_limits = vec![
            HugepageLimit {
                page_size: "2MB".to_owned(),
                limit,
            },
            HugepageLimit {
                page_size: "1GB".to_owned(),
                limit: 0,
            },
        ];
        made
    };
    let none = cri.run(&id, &config, limited("none", 0)).await?;
    let total = memory("MemTotal");
    let before: u64 = cri.shell(&none, &total).await?.trim().parse()?;
    let some = cri.run(&id, &config, limited("some", 8 << 20)).await?;
    let after: u64 = cri.shell(&some, &total).await?.trim().parse()?;
    check!(
        after >= before + (8 << 10),
        "{before} KiB, then {after} KiB"
    );
    let used = "fallocate -l 4M /huge/four && cat /sys/fs/cgroup/hugetlb.2MB.current";
    let used = cri.shell(&some, used).await?;
    check!(used.trim() == (4 << 20).to_string(), "{used}");
    let pages = cri.shell(&some, &memory("HugePages_Total")).await?;
    check!(pages.trim() == "2", "{pages}");
    // Beyond the container's limit, and by one that has none.
    for (made, script) in [
        (&some, "fallocate -l 6M /huge/six"),
        (&none, "fallocate -l 2M /huge/two"),
    ] {
        let refused = cri.exec(made, &["sh", "-c", script]).await?;
        check!(refused.exit_code != 0, "{script}: {refused:?}");
    }
    let bad = cri.create(&id, &config, limited("bad", 3 << 20)).await;
    let code = bad.as_ref().err().map(tonic::Status::code);
    check!(code == Some(Code::InvalidArgument), "{bad:?}");
    Ok(cri.remove_pod(&id).await?)
}

async fn what_cannot_be_leaves_nothing(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("refused")?;
    let good = scratch.dir("good")?;
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
            "a missing source",
            mount(&good.join("gone"), "/x"),
            Code::NotFound,
        ),
        ("a relative path", mount(&good, "x"), Code::InvalidArgument),
        (
            "a path with ..",
            mount(&good, "/x/../y"),
            Code::InvalidArgument,
        ),
        (
            "the path of another",
            mount(&good, "/good/."),
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
            Code::Internal,
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
