//! Volumes as buildkit, dockerd and kind use them: capabilities, ACLs, attributes and devices on files,
//! and overlays whose upper directory is a volume. An emptyDir and a local PersistentVolume are
//! directories of the node; one here is in memory, the other on a disk.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{ContainerConfig, LinuxContainerSecurityContext, PodSandboxConfig};

use super::{
    super::image,
    support::{Scratch, mount, run, text, with},
};
use crate::{
    Failure, Outcome, check,
    cri::{PATIENCE, pause, pod, script},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("volumes", files_of_volumes_are_whole, LIMIT * 2),
        test!("volumes", an_overlay_is_on_a_volume, LIMIT * 2),
        test!("volumes", a_volume_in_memory_follows_its_size),
    ]
}

/// A directory on the node's disk, and one in its memory.
fn places(name: &str) -> Result<[(Scratch, PathBuf); 2], Failure> {
    let memory = Scratch::new(name)?;
    let disk = Scratch(Path::new("/var/lib/bulkhead").join(format!("test-{name}")));
    fs::create_dir_all(&disk.0)?;
    let (in_memory, on_disk) = (memory.dir("data")?, disk.dir("data")?);
    Ok([(disk, on_disk), (memory, in_memory)])
}

fn privileged(
    mut pod: PodSandboxConfig,
    mut main: ContainerConfig,
) -> (PodSandboxConfig, ContainerConfig) {
    let linux = pod.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    let linux = main.linux.get_or_insert_default();
    linux.security_context = Some(LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    });
    (pod, main)
}

/// As the container's root, and as `default-user`, whose id is 1000: `as_user COMMAND`.
const PREPARED: &str = r#"set -e; cd /data; umask 022
as_user() { su -s /bin/sh default-user -c "$1" 2>/dev/null || echo refused; }
"#;

const CAPABILITIES: &str = r#"
cp /bin/busybox busybox-chown; echo mine > mine
as_user '/data/busybox-chown chown 1000 /data/mine'
setcap cap_chown+ep busybox-chown; getcap busybox-chown
as_user '/data/busybox-chown chown 1000 /data/mine'; stat -c '%u %a' mine
cp busybox-chown copy; setcap cap_chown+ep copy; setfattr -x security.capability copy; getcap copy
echo >> busybox-chown; getcap busybox-chown
as_user '/data/busybox-chown chown 0 /data/mine'; stat -c %u mine
setcap cap_chown+ep busybox-chown; chown 1000 busybox-chown; getcap busybox-chown
setcap cap_chown+ep busybox-chown; setcap -r busybox-chown; getcap busybox-chown
"#;
const CAPABILITIES_SEEN: &str = "refused\nbusybox-chown cap_chown=ep\n1000 644\nrefused\n1000\n";

const ACLS: &str = r#"
mkdir acl; chmod 700 acl; echo secret > acl/f; chmod 600 acl/f
as_user 'cat /data/acl/f'
setfacl -m u:1000:x acl; setfacl -m u:1000:r acl/f
as_user 'cat /data/acl/f'
getfacl -cn acl/f; stat -c %a acl/f
chmod g= acl/f; as_user 'cat /data/acl/f'
chmod g=r acl/f; as_user 'cat /data/acl/f'
setfacl -b acl/f; as_user 'cat /data/acl/f'; stat -c %a acl/f
setfacl -d -m u:1000:rwX acl
(umask 077; echo new > acl/new; mkdir acl/sub; echo deep > acl/sub/deep)
as_user 'cat /data/acl/new /data/acl/sub/deep'
as_user 'echo more >> /data/acl/new'; tail -n 1 acl/new
getfacl -cnd acl/sub
setfacl -k acl; (umask 077; echo last > acl/last); stat -c %a acl/last
"#;
const ACLS_SEEN: &str = "refused\nsecret\n\
    user::rw-\nuser:1000:r--\ngroup::---\nmask::r--\nother::---\n\n640\n\
    refused\nsecret\nrefused\n600\nnew\ndeep\nmore\n\
    user::rwx\nuser:1000:rwx\ngroup::---\nmask::rwx\nother::---\n\n600\n";

const ATTRIBUTES: &str = r#"
echo > f; mkdir d
setfattr -n user.plain -v 1 f; setfattr -n user.bulkhead.device -v 'b 8:0 0666' f
getfattr -d -m - f | sort; stat -c %F f
setfattr -n user.bulkhead.trusted.overlay.opaque -v y d; getfattr -d -m - d
setfattr -x user.bulkhead.device f; getfattr -d -m - f
"#;
const ATTRIBUTES_SEEN: &str = "\n# file: f\nuser.bulkhead.device=\"b 8:0 0666\"\nuser.plain=\"1\"\n\
    regular file\n\
    # file: d\nuser.bulkhead.trusted.overlay.opaque=\"y\"\n\n\
    # file: f\nuser.plain=\"1\"\n\n";

const DEVICES: &str = r#"
mkdir dev; cd dev
mknod zero c 1 5; mknod disk b 7 200; mkfifo fifo; chmod 606 zero; chown 1000:1000 zero
stat -c '%n %F %t:%T %a %u %s' *
as_user 'head -c 4 /data/dev/zero' | od -An -tx1
(dd if=disk of=/dev/null count=1 2>&1 || :; dd of=disk if=zero count=1 2>&1 || :) | grep -c 'not permitted'
ln zero linked; mkdir deeper; mv disk deeper/moved
find . -type c | sort; find . -type b; find . -type f
mv zero deeper; rm linked; find . -type c; rm -r deeper; ls
"#;
const DEVICES_SEEN: &str = "disk block special file 7:c8 644 0 0\nfifo fifo 0:0 644 0 0\n\
    zero character special file 1:5 606 1000 0\n 00 00 00 00\n2\n\
    ./linked\n./zero\n./deeper/moved\n./deeper/zero\nfifo\n";

async fn files_of_volumes_are_whole(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("file-tools");
    cri.pull(&tools).await?;
    let places = places("whole")?;
    let config = pod("whole");
    let id = cri.run_pod(config.clone()).await?;
    for (number, (_, data)) in places.iter().enumerate() {
        let main = script(&format!("main{number}"), &tools, "sleep 1000");
        let main = cri
            .run(&id, &config, with(main, vec![mount(data, "/data")]))
            .await?;
        for (what, expected) in [
            (CAPABILITIES, CAPABILITIES_SEEN),
            (ACLS, ACLS_SEEN),
            (ATTRIBUTES, ATTRIBUTES_SEEN),
        ] {
            let seen = cri.shell(&main, &format!("{PREPARED}{what}")).await?;
            check!(seen == expected, "{}: {what}\n{seen}", data.display());
        }
        // What the node has of it: devices are files, and nothing means anything to its kernel.
        let begin = "set -e; cd /data; mkdir kept; mknod kept/null c 1 3; setcap cap_chown+ep copy; \
            setfacl -m u:1000:rwx copy";
        cri.shell(&main, begin).await?;
        let null = fs::symlink_metadata(data.join("kept/null"))?;
        check!(
            null.is_file() && null.len() == 0 && null.mode() & 0o7777 == 0o1600,
            "{null:?}"
        );
        for name in ["security.capability", "system.posix_acl_access"] {
            let found = rustix::fs::getxattr(data.join("copy"), name, &mut [0; 4096]);
            check!(found.is_err(), "{name} on the node: {found:?}");
        }
        let seen = cri.shell(&main, &format!("{PREPARED}{DEVICES}")).await?;
        check!(seen == DEVICES_SEEN, "{}: {seen}", data.display());
        let fifo = fs::symlink_metadata(data.join("dev/fifo"))?;
        check!(fifo.file_type().is_fifo(), "{fifo:?}");
        // A page that a mapping wrote does not land at the end.
        let seen = cri.shell(&main, "/tools/map-and-append /data/log").await?;
        check!(seen == "5696 bytes as written\n", "{seen:?}");
        let log = fs::read(data.join("log"))?;
        check!(
            log.len() == 5696 && log.starts_with(b"0000000\n") && log.ends_with(b"0000199\n"),
            "{} bytes on the node",
            log.len()
        );
    }
    // Another pod with the volume has the device in its own guest.
    let other = pod("other");
    let second = cri.run_pod(other.clone()).await?;
    let (_, data) = places.first().ok_or("no place")?;
    let main = with(
        script("main", &tools, "sleep 1000"),
        vec![mount(data, "/data")],
    );
    let main = cri.run(&second, &other, main).await?;
    let seen = cri
        .shell(
            &main,
            "stat -c '%F %t:%T' /data/kept/null; echo x > /data/kept/null; getcap /data/copy; \
             for n in $(seq 300); do echo one >> /data/both; done",
        )
        .await?;
    let expected = "character special file 1:3\n/data/copy cap_chown=ep\n";
    check!(seen == expected, "{seen:?}");
    check!(
        fs::metadata(data.join("kept/null"))?.len() == 0,
        "a write to the device reached the node"
    );
    cri.remove_pod(&second).await?;
    Ok(cri.remove_pod(&id).await?)
}

const OVERLAY: &str = r#"set -e; cd /data; mkdir lower upper work merged
echo low > lower/a; echo gone > lower/gone; mkdir lower/d; echo x > lower/d/x; ln -s a lower/link; mkfifo lower/fifo
cp /bin/busybox lower/busybox; setcap cap_chown+ep lower/busybox
mount_it() { mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged; }
mount_it
echo up >> merged/a; rm merged/gone; rm -r merged/d; mkdir merged/d; echo new > merged/d/new
mv merged/a merged/b; mknod merged/null c 1 3; touch merged/busybox; chown -h 1000 merged/link merged/fifo
mkdir merged/acl; setfacl -d -m u:1000:rwx merged/acl; echo > merged/acl/f
setfattr -n trusted.mine -v 1 merged/b
check() {
    cat merged/b; ls merged merged/d; stat -c '%F %t:%T' merged/null; getcap merged/busybox
    stat -c '%u %F' merged/link merged/fifo; getfacl -cn merged/acl/f | grep -o 'user:1000:rwx'
    getfattr --only-values -n trusted.mine merged/b; echo; echo x > merged/null
    find merged -type c
}
check > before; umount merged; mount_it; check > after; cmp before after; umount merged; cat after
getfattr --only-values -n trusted.overlay.opaque upper/d; echo
stat -c '%n %F %t:%T' upper/gone; find upper -type c | sort
"#;
const OVERLAY_SEEN: &str = "low\nup\nmerged:\nacl\nb\nbusybox\nd\nfifo\nlink\nnull\n\nmerged/d:\nnew\n\
    character special file 1:3\nmerged/busybox cap_chown=ep\n1000 symbolic link\n1000 fifo\n\
    user:1000:rwx\n1\nmerged/null\ny\n\
    upper/gone character special file 0:0\nupper/a\nupper/gone\nupper/null\n";

async fn an_overlay_is_on_a_volume(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("file-tools");
    cri.pull(&tools).await?;
    let places = places("overlay")?;
    let (config, main) = privileged(pod("overlay"), script("main", &tools, "sleep 1000"));
    let id = cri.run_pod(config.clone()).await?;
    let mounts = places
        .iter()
        .enumerate()
        .map(|(number, (_, data))| mount(data, &format!("/data{number}")))
        .collect();
    let main = cri.run(&id, &config, with(main, mounts)).await?;
    for (number, (_, data)) in places.iter().enumerate() {
        let script = OVERLAY.replacen("/data", &format!("/data{number}"), 1);
        let seen = cri.shell(&main, &script).await?;
        check!(seen == OVERLAY_SEEN, "{}: {seen}", data.display());
        let gone = fs::symlink_metadata(data.join("upper/gone"))?;
        check!(
            gone.file_type().is_char_device() && gone.rdev() == 0,
            "{gone:?}"
        );
        let found =
            rustix::fs::getxattr(data.join("upper/d"), "trusted.overlay.opaque", &mut [0; 8]);
        check!(found.is_err(), "trusted on the node: {found:?}");
        let mode = fs::metadata(data.join("upper/null"))?.permissions().mode();
        check!(mode & 0o7777 == 0o1600, "{mode:o}");
    }
    Ok(cri.remove_pod(&id).await?)
}

/// The kubelet mounts an emptyDir of medium Memory anew when its pod is resized.
async fn a_volume_in_memory_follows_its_size(context: &mut Context) -> Outcome {
    let tools = image("file-tools");
    context.cri.pull(&tools).await?;
    let scratch = Scratch::new("resized")?;
    let volume = scratch.dir("pods/uid-resized/volumes/kubernetes.io~empty-dir/cache")?;
    run(
        "mount",
        &["-t", "tmpfs", "-o", "size=2m", "none", &text(&volume)],
    )?;
    let resize = |size: &str| {
        let options = format!("remount,size={size}");
        run("mount", &["-o", &options, &text(&volume)])
    };
    let config = pod("resized");
    let id = context.cri.run_pod(config.clone()).await?;
    let main = with(
        script("main", &tools, "sleep 1000"),
        vec![mount(&volume, "/cache")],
    );
    let main = context.cri.run(&id, &config, main).await?;
    async fn wait(context: &Context, main: &str, kib: &str) -> Outcome {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let size = "df -k /cache | tail -1 | tr -s ' ' | cut -d' ' -f2";
        while context.cri.shell(main, size).await?.trim() != kib {
            pause(deadline, "the volume's new size").await?;
        }
        Ok(())
    }
    wait(context, &main, "2048").await?;
    resize("6m")?;
    wait(context, &main, "6144").await?;
    let write = "head -c 4194304 /dev/zero > /cache/large";
    context.cri.shell(&main, write).await?;
    // What is in it stays; it is smaller as soon as that fits.
    resize("3m")?;
    resize("5m")?;
    wait(context, &main, "5120").await?;
    resize("1m")?;
    let kept = context.cri.shell(&main, "stat -c %s /cache/large").await?;
    check!(kept == "4194304\n", "{kept:?}");
    context.cri.shell(&main, "rm /cache/large").await?;
    wait(context, &main, "1024").await?;
    // What changed while no daemon ran is brought by the next one.
    context.host.kill_daemon()?;
    resize("8m")?;
    context.host.start_daemon().await?;
    context.cri = context.host.cri().await?;
    wait(context, &main, "8192").await?;
    Ok(context.cri.remove_pod(&id).await?)
}
