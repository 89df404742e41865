//! Disks, images, sockets, huge pages.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
};

use bulkhead_proto::cri::{Device, HugepageLimit, ImageSpec, Mount};
use tonic::Code;

use super::{
    super::{BUSYBOX, image},
    support::{Loop, Scratch, mount, run, text, with},
};
use crate::{
    Outcome, check,
    cri::{pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("volumes", disks_images_and_sockets, LIMIT * 2),
        test!("volumes", huge_pages_are_made_within_the_limit),
    ]
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
