//! What a pod finds in its guest's kernel: the features that VPNs, CNI plugins, service meshes and
//! storage drivers ask of a node's, and which kernel a handler boots. Not here: processes, memory and
//! limits, which have tests of their own.

use std::{fs, path::Path};

use bulkhead_proto::cri::{Device, LinuxContainerSecurityContext, PodSandboxConfig, StatusRequest};
use tonic::Code;

use super::{
    BUSYBOX, image,
    volumes::support::{Loop, Scratch, run, text},
};
use crate::{
    Outcome, check,
    cri::{Cri, pod, script},
    host::{Host, Options},
    leaks,
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(
            "kernel",
            what_vpns_cni_plugins_and_meshes_use_is_there,
            LIMIT * 2
        ),
        test!("kernel", a_disk_of_any_usual_file_system_mounts, LIMIT * 2),
        test!("kernel", a_file_and_its_directory_have_one_device_number),
        test!(
            "kernel",
            the_full_kernel_has_a_handler_of_its_own,
            LIMIT * 2
        ),
    ]
}

const TOOL: &str = "/tools/kernel-offers";
const FULL: &str = "kvm-full";

fn privileged_pod(name: &str) -> PodSandboxConfig {
    let mut config = pod(name);
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = true;
    config
}

fn privileged(name: &str, image: &str) -> bulkhead_proto::cri::ContainerConfig {
    let mut made = script(name, image, "sleep 1000");
    made.linux.get_or_insert_default().security_context = Some(LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    });
    made
}

async fn what_vpns_cni_plugins_and_meshes_use_is_there(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("volume-tools");
    cri.pull(&tools).await?;
    let config = privileged_pod("offers");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri.run(&id, &config, privileged("offers", &tools)).await?;
    // Without what is used below: lo and eth0, and nothing that nobody asked for.
    let links = "awk -F: 'NR > 2 { print $1 }' /proc/net/dev | tr -d ' ' | sort | xargs";
    let links = cri.shell(&made, links).await?;
    check!(links.trim() == "eth0 lo", "{links}");
    let done = cri.exec_for(&made, &[TOOL], 300).await?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    check!(done.exit_code == 0, "{done:?}");
    let missing: Vec<_> = said
        .lines()
        .filter(|line| !line.starts_with("ok "))
        .collect();
    check!(missing.is_empty(), "{missing:#?}");
    for line in [
        "ok link wireguard",
        "ok ipvs rr",
        "ok ipsec esp-gcm",
        "ok socket ktls",
        "ok nftables flow-table",
        "ok ebtables broute",
        "ok device-mapper crypt",
        "ok no-loopback vsock",
    ] {
        check!(
            said.lines().any(|said| said == line),
            "{line:?} is not in {said}"
        );
    }
    // Hardening, and a clock that a container with the capability can discipline the guest's by.
    let seen = cri
        .shell(
            &made,
            "cat /proc/sys/kernel/yama/ptrace_scope /proc/sys/kernel/dmesg_restrict; \
             zcat /proc/config.gz | grep -cE '^CONFIG_(PTP_1588_CLOCK_KVM|HARDENED_USERCOPY)=y$'",
        )
        .await?;
    check!(seen == "1\n1\n2\n", "{seen:?}");
    Ok(cri.remove_pod(&id).await?)
}

async fn a_disk_of_any_usual_file_system_mounts(context: &mut Context) -> Outcome {
    // What makes each: a file system on a device, or an image of a directory.
    const KINDS: [(&str, u64, &str); 6] = [
        ("ext4", 32, "mkfs.ext4 -q $disk"),
        // The least that mkfs.xfs makes.
        ("xfs", 300, "mkfs.xfs -q $disk"),
        ("btrfs", 128, "mkfs.btrfs -q $disk"),
        ("vfat", 32, "mkfs.vfat -F 32 $disk"),
        (
            "squashfs",
            0,
            "mksquashfs $files $disk -noappend -quiet -comp zstd",
        ),
        ("iso9660", 0, "genisoimage -quiet -R -J -o $disk $files"),
    ];
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let scratch = Scratch::new("kinds-of-disks")?;
    let files = scratch.dir("files")?;
    fs::write(files.join("file"), "of the image\n")?;
    let mut made = privileged("disks", BUSYBOX);
    let mut disks = Vec::new();
    for (kind, mib, make) in KINDS {
        let disk = scratch.0.join(kind);
        fs::File::create(&disk)?.set_len(mib << 20)?;
        let make = format!("disk={} files={}; {make}", text(&disk), text(&files));
        run("sh", &["-euc", &make])?;
        let device = Loop::new(&disk)?;
        made.devices.push(Device {
            container_path: format!("/dev/of-{kind}"),
            host_path: device.0.clone(),
            permissions: "rwm".to_owned(),
        });
        disks.push(device);
    }
    let config = privileged_pod("kinds-of-disks");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri.run(&id, &config, made).await?;
    for (kind, mib, _) in KINDS {
        let (options, words) = match mib {
            0 => ("ro", "cat file"),
            _ => ("rw", "echo of the image >file; sync file; cat file"),
        };
        let seen = cri
            .shell(
                &made,
                &format!(
                    "mkdir /mnt-{kind} && mount -t {kind} -o {options} /dev/of-{kind} /mnt-{kind} && \
                     cd /mnt-{kind} && {words} && cd / && umount /mnt-{kind}"
                ),
            )
            .await?;
        check!(seen == "of the image\n", "{kind}: {seen:?}");
    }
    cri.remove_pod(&id).await?;
    drop(disks);
    Ok(())
}

async fn a_file_and_its_directory_have_one_device_number(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    let tools = image("volume-tools");
    cri.pull(&tools).await?;
    for handler in ["kvm", "host"] {
        let config = pod(&format!("one-device-{handler}"));
        let id = cri.run_pod_on(handler, config.clone()).await?;
        let main = script("main", &tools, "sleep 1000");
        let made = cri.run(&id, &config, main).await?;
        // Of the lowest layer, of another, written, copied up, in a directory that was.
        let devices = cri
            .shell(
                &made,
                "mkdir /new && echo new >/new/file && echo more >>/etc/passwd && \
                 stat -c %d / /bin /bin/busybox /tools /tools/meddle /new /new/file /etc /etc/passwd | sort -u",
            )
            .await?;
        check!(devices.lines().count() == 1, "{handler}: {devices:?}");
        // Numbers that are of one file system are of one inode each.
        let twice = cri
            .shell(
                &made,
                "stat -c %i /bin/busybox /tools/* /new /new/file /etc/passwd | sort | uniq -d",
            )
            .await?;
        check!(twice.is_empty(), "{handler}: {twice:?}");
        let counted = cri
            .shell(
                &made,
                "dd if=/dev/zero of=/new/large bs=1024 count=2048 2>/dev/null && sync /new/large; \
                 echo $(($(du -skx / | cut -f 1) - $(du -skx /bin | cut -f 1) >= 2048)) \
                 $(find / -xdev -name large) $(($(du -skx /bin | cut -f 1) > 500)); \
                 for place in /bin /new /etc; do mountpoint -q $place && echo $place; done; mountpoint -q / && echo root",
            )
            .await?;
        check!(
            counted == "1 /new/large 1\nroot\n",
            "{handler}: {counted:?}"
        );
        cri.remove_pod(&id).await?;
    }
    Ok(())
}

async fn handlers(cri: &Cri) -> Result<Vec<String>, tonic::Status> {
    let status = cri.runtime.clone().status(StatusRequest::default()).await?;
    let handlers = status.into_inner().runtime_handlers;
    Ok(handlers.into_iter().map(|handler| handler.name).collect())
}

async fn the_full_kernel_has_a_handler_of_its_own(context: &mut Context) -> Outcome {
    // Not without one.
    let cri = &context.cri;
    check!(
        !handlers(cri).await?.contains(&FULL.to_owned()),
        "it is told"
    );
    let refused = cri.run_pod_on(FULL, pod("no-full-kernel")).await;
    check!(
        refused.as_ref().is_err_and(|error| {
            error.code() == Code::NotFound && error.message().contains("vmm.full_kernel")
        }),
        "{refused:?}"
    );

    // The tests build no full kernel: the usual one stands in its place, and nothing in that one's.
    let kernel = context.host.bulkhead().with_file_name("vmlinux");
    let nowhere = Path::new("/nonexistent/vmlinux");
    let options = Options {
        vmm: format!("kernel = {nowhere:?}\nfull_kernel = {kernel:?}\n"),
        ..Options::default()
    };
    let mut host = Host::start("fullkernel", &context.results, options).await?;
    let cri = host.cri().await?;
    check!(
        handlers(&cri).await?.contains(&FULL.to_owned()),
        "it is not told"
    );
    let id = cri.run_pod_on(FULL, pod("full")).await?;
    let (status, info) = cri.pod_status(&id).await?;
    check!(status.runtime_handler == FULL, "{status:?}");
    let told: serde_json::Value = serde_json::from_str(info.get("info").ok_or("no info")?)?;
    check!(
        told.get("handler").is_some_and(|handler| handler == FULL),
        "{told}"
    );
    cri.remove_pod(&id).await?;
    let refused = cri.run_pod_on("kvm", pod("not-full")).await;
    check!(
        refused
            .as_ref()
            .is_err_and(|error| error.message().contains("vmm.kernel")),
        "{refused:?}"
    );
    host.stop_daemon().await?;
    // The bridge stays, as it does for every user of the plugin.
    leaks::output("ip", &["link", "del", &host.bridge()])?;
    Ok(())
}
