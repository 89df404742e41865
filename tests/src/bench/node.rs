//! What a daemon's pods cost: the phases of their start, memory, exec, pulls.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use bulkhead_proto::cri::{ContainerConfig, ImageSpec, PodSandboxConfig, RemoveImageRequest};
use serde_json::Value;
use tokio::time::Instant;

use super::figures::{Figures, milliseconds};
use crate::{
    Failure, Outcome, check,
    cri::{self, Cri},
    host::{Host, Options, REGISTRY},
    images::recipes::BULK_BYTES,
};

const VMM_MEMORY: &str = "VMM memory beyond guest RAM";
const MIB: f64 = 1_048_576.0;

/// How often things are done.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// Pods started one after the other.
    pub pods: usize,
    /// Repetitions of what is quick.
    pub repeat: usize,
}

/// What of a node is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All there is.
    All,
    /// Streams and volumes.
    Streams,
    /// Images of many layers.
    Layers,
    /// Machines that grow.
    Memory,
}

/// Measures a node below `results`.
///
/// # Errors
/// If anything of it does not work.
pub async fn measure(
    results: &Path,
    effort: Effort,
    scope: Scope,
    figures: &mut Figures,
) -> Outcome {
    let mut host = Host::start("bench", results, Options::default()).await?;
    host.start_registry().await?;
    let cri = host.cri().await?;
    let busybox = format!("{REGISTRY}/busybox:latest");
    println!("==> pulling");
    cri.pull(&busybox).await?;
    let measured = |part| scope == Scope::All || scope == part;
    if scope == Scope::All {
        pulls(&cri, effort, figures).await?;
        one_by_one(&host, &cri, &busybox, effort, figures).await?;
    }
    if measured(Scope::Layers) {
        println!("==> layers");
        super::layers::measure(&cri, &busybox, effort.repeat.min(5), figures).await?;
    }
    if measured(Scope::Streams) {
        println!("==> streams");
        super::streams::measure(&host, &cri, &busybox, effort.repeat, figures).await?;
        println!("==> volumes");
        super::files::measure(&host, &cri, &busybox, effort.repeat.min(3), figures).await?;
    }
    if measured(Scope::Memory) {
        println!("==> memory");
        super::memory::measure(&cri, &busybox, figures).await?;
    }
    host.stop_daemon().await
}

async fn one_by_one(
    host: &Host,
    cri: &Cri,
    image: &str,
    effort: Effort,
    figures: &mut Figures,
) -> Outcome {
    for number in 1..=effort.pods {
        println!("==> pod {number} of {}", effort.pods);
        let last = number == effort.pods;
        let repeat = last.then_some(effort.repeat);
        one_pod(host, cri, image, number, repeat, figures).await?;
    }
    compare_first_and_last(figures);
    if let Some(memory) = figures.median(VMM_MEMORY) {
        figures.hold("VMM memory beyond guest RAM, MiB", memory, 5.0);
    }
    Ok(())
}

/// The bulk image is one layer of incompressible data.
async fn pulls(cri: &Cri, effort: Effort, figures: &mut Figures) -> Outcome {
    let name = format!("{REGISTRY}/bulk:latest");
    for _ in 0..effort.repeat.min(3) {
        let began = Instant::now();
        cri.pull(&name).await?;
        #[allow(clippy::cast_precision_loss)]
        let size = BULK_BYTES as f64 / MIB;
        figures.add(
            "pull throughput (64 MiB layer)",
            "MiB/s",
            size / began.elapsed().as_secs_f64(),
        );
        let image = Some(ImageSpec {
            image: name.clone(),
            ..ImageSpec::default()
        });
        cri.images
            .clone()
            .remove_image(RemoveImageRequest { image })
            .await?;
    }
    Ok(())
}

/// Starts a pod with a container, takes the times; of the last one, also what needs a running pod.
async fn one_pod(
    host: &Host,
    cri: &Cri,
    image: &str,
    number: usize,
    repeat: Option<usize>,
    figures: &mut Figures,
) -> Outcome {
    let logs = host.dir().join(format!("logs{number}"));
    fs::create_dir_all(&logs)?;
    let config = PodSandboxConfig {
        log_directory: logs.display().to_string(),
        ..cri::pod(&format!("bench{number}"))
    };
    let began = Instant::now();
    let pod = cri.run_pod(config.clone()).await?;
    figures.add("RunPodSandbox", "ms", milliseconds(began.elapsed()));
    let container = ContainerConfig {
        log_path: "out.log".to_owned(),
        ..cri::script("c", image, "echo up; exec sleep 100000")
    };
    let create = Instant::now();
    let id = cri.create(&pod, &config, container).await?;
    figures.add("CreateContainer", "ms", milliseconds(create.elapsed()));
    let start = Instant::now();
    cri.start(&id).await?;
    figures.add("StartContainer", "ms", milliseconds(start.elapsed()));
    wait_for(&logs.join("out.log"), "up").await?;
    figures.add(
        "StartContainer to first output",
        "ms",
        milliseconds(start.elapsed()),
    );
    figures.add(
        "RunPodSandbox to first output",
        "ms",
        milliseconds(began.elapsed()),
    );
    let (_, info) = cri.pod_status(&pod).await?;
    phases(&info, figures)?;
    let metrics = vmm_metrics(
        &host
            .run_dir()
            .join("pods")
            .join(&pod)
            .join("vm/control.sock"),
    )?;
    memory(&metrics, figures)?;
    if let Some(repeat) = repeat {
        for _ in 0..repeat {
            let began = Instant::now();
            let done = cri.exec(&id, &["/bin/true"]).await?;
            check!(done.exit_code == 0, "true exited {}", done.exit_code);
            figures.add("ExecSync of true", "ms", milliseconds(began.elapsed()));
        }
    }
    let began = Instant::now();
    cri.stop(&id, 0).await?;
    cri.remove_pod(&pod).await?;
    figures.add(
        "StopContainer to RemovePodSandbox",
        "ms",
        milliseconds(began.elapsed()),
    );
    Ok(())
}

/// Waits for a line in a CRI log.
async fn wait_for(path: &Path, text: &str) -> Outcome {
    let deadline = Instant::now() + cri::PATIENCE;
    let mut turn = tokio::time::interval(Duration::from_millis(5));
    while !fs::read_to_string(path).unwrap_or_default().contains(text) {
        check!(
            Instant::now() < deadline,
            "no {text:?} in {} in time",
            path.display()
        );
        turn.tick().await;
    }
    Ok(())
}

/// The daemon's own account of a start.
fn phases(info: &std::collections::HashMap<String, String>, figures: &mut Figures) -> Outcome {
    let text = info.get("info").ok_or("the pod's status has no info")?;
    let info: Value = serde_json::from_str(text)?;
    let phases = info["phases"]
        .as_array()
        .ok_or("the pod's status has no phases")?;
    for phase in phases {
        let name = phase["name"].as_str().ok_or("a phase without name")?;
        let took = phase["took_ms"].as_f64().ok_or("a phase without time")?;
        figures.add(&format!("  phase: {name}"), "ms", took);
    }
    Ok(())
}

/// Asks a VMM for its metrics (docs/vmm-api.md).
fn vmm_metrics(socket: &Path) -> Result<Value, Failure> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let request = br#"{"metrics": {}}"#;
    stream.write_all(&u32::try_from(request.len())?.to_le_bytes())?;
    stream.write_all(request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    check!(length <= 64 << 10, "an answer of {length} bytes");
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    let answer: Value = serde_json::from_slice(&answer)?;
    let metrics = &answer["ok"]["metrics"];
    check!(metrics.is_object(), "no metrics: {answer}");
    Ok(metrics.clone())
}

fn memory(metrics: &Value, figures: &mut Figures) -> Outcome {
    for (name, key) in [
        ("guest memory, resident", "guest_resident_bytes"),
        (VMM_MEMORY, "vmm_rss_bytes"),
    ] {
        let bytes = metrics[key]
            .as_f64()
            .ok_or_else(|| format!("no {key} in the metrics"))?;
        figures.add(name, "MiB", bytes / MIB);
    }
    if let Some(marks) = metrics["boot_us"].as_object() {
        for (name, micros) in marks {
            let micros = micros.as_f64().ok_or("a mark without time")?;
            figures.add(
                &format!("  vmm: {name}, since process start"),
                "ms",
                micros / 1e3,
            );
        }
    }
    Ok(())
}

fn compare_first_and_last(figures: &mut Figures) {
    let samples = figures.samples("RunPodSandbox");
    // A start or two at each end would be noise.
    let part = samples.len() / 3;
    if part > 0 {
        let first = super::figures::median(&samples[..part]);
        let last = super::figures::median(&samples[samples.len() - part..]);
        figures.add(
            "last third of the pods against the first",
            "ratio",
            last / first,
        );
    }
}
