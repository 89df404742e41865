//! What files of a volume cost in a pod, beside the same program on the host's own file system.

use std::{fs, process::Command};

use bulkhead_proto::cri::Mount;

use super::{
    figures::Figures,
    streams::{BULK, programs},
};
use crate::{
    Failure, Outcome, check,
    cri::{self, Cri},
    host::Host,
};

const SIZE: u64 = 64 << 20;
/// Random accesses, of 4 KiB.
const COUNT: u64 = 512;
/// Written first: the others need the file.
const WAYS: [&str; 4] = ["write", "read", "random-read", "random-write"];

/// Measures in a pod of its own. What the pod reads is in the host's memory; nothing of it is in the
/// guest's.
///
/// # Errors
/// If anything of it does not work.
pub async fn measure(
    host: &Host,
    cri: &Cri,
    image: &str,
    repeat: usize,
    figures: &mut Figures,
) -> Outcome {
    let programs = programs()?;
    let bulk = format!("{}/bulk", programs.host_path);
    // On the file system of the daemon's state: a disk, where nodes have one.
    let directory = host.state_dir().with_extension("bench-files");
    fs::create_dir_all(&directory)?;
    let config = cri::pod("bench-files");
    let pod = cri.run_pod(config.clone()).await?;
    let mut container = cri::script("c", image, "sleep 100000");
    let data = Mount {
        container_path: "/data".to_owned(),
        host_path: directory.display().to_string(),
        ..Mount::default()
    };
    container.mounts = vec![programs, data];
    let id = cri.run(&pod, &config, container).await?;
    for _ in 0..repeat {
        for way in WAYS {
            let amount = if way.starts_with("random") {
                COUNT
            } else {
                SIZE
            };
            let amount = amount.to_string();
            let on_host = directory.join("host");
            let done = Command::new(&bulk)
                .arg(way)
                .arg(on_host)
                .arg(&amount)
                .output()?;
            let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
            check!(done.status.success(), "{bulk} {way}: {complaint}");
            add(
                figures,
                way,
                "the host",
                &String::from_utf8_lossy(&done.stdout),
            )?;
            let script = format!("{BULK} {way} /data/pod {amount}");
            add(figures, way, "a pod", &cri.shell(&id, &script).await?)?;
        }
    }
    cri.remove_pod(&pod).await?;
    Ok(fs::remove_dir_all(&directory)?)
}

/// A sample from the microseconds the program prints.
fn add(figures: &mut Figures, way: &str, place: &str, printed: &str) -> Result<(), Failure> {
    let micros: f64 = printed.trim().parse()?;
    #[allow(clippy::cast_precision_loss)]
    if way.starts_with("random") {
        let name = format!("volume, {way} of 4 KiB, {place}");
        figures.add(&name, "us", micros / COUNT as f64);
    } else {
        let name = format!("volume, {way} of 64 MiB, {place}");
        figures.add(&name, "MiB/s", SIZE as f64 / 1_048_576.0 / (micros / 1e6));
    }
    Ok(())
}
