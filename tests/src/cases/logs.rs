//! Container logs, as the kubelet reads them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use bulkhead_proto::cri::{ContainerConfig, PodSandboxConfig, ReopenContainerLogRequest};

use super::BUSYBOX;
use crate::{
    Failure, Outcome, check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
    waiting::Progress,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("logs", lines_have_the_kubelets_form),
        test!("logs", a_rotated_log_is_opened_anew),
    ]
}

/// A pod whose logs go to a directory of the test's own, and the directory.
pub(super) fn logging_pod(context: &Context, name: &str) -> (PodSandboxConfig, PathBuf) {
    let dir = context.host.dir().join("logs").join(name);
    let config = PodSandboxConfig {
        log_directory: dir.display().to_string(),
        ..pod(name)
    };
    (config, dir)
}

pub(super) fn logged(mut container: ContainerConfig, file: &str) -> ContainerConfig {
    container.log_path = file.to_owned();
    container
}

/// A stream's bytes as the kubelet puts them together, with every line's form checked.
pub(super) fn read(path: &Path, stream: &str) -> Result<Vec<u8>, Failure> {
    let text = fs::read(path)?;
    let mut out = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let mut part = || parts.next().ok_or("a line with too few fields");
        let time = String::from_utf8(part()?.to_vec())?;
        check!(time.len() >= 20 && time.contains('T'), "time {time:?}");
        let name = part()?;
        check!(name == b"stdout" || name == b"stderr", "stream {name:?}");
        let tag = part()?;
        check!(tag == b"F" || tag == b"P", "tag {tag:?}");
        let rest = part()?;
        let content = rest.strip_suffix(b"\n").ok_or("a line without an end")?;
        check!(
            content.len() <= 16 << 10,
            "a line of {} bytes",
            content.len()
        );
        if name == stream.as_bytes() {
            out.extend_from_slice(content);
            if tag == b"F" {
                out.push(b'\n');
            }
        }
    }
    Ok(out)
}

async fn lines_have_the_kubelets_form(context: &mut Context) -> Outcome {
    let (config, dir) = logging_pod(context, "form");
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let id = cri.run_pod(config.clone()).await?;
    let text = "echo one; echo two >&2; head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'bin\\001\\377\\n'; printf last";
    let made = cri
        .run(
            &id,
            &config,
            logged(script("main", BUSYBOX, text), "main/0.log"),
        )
        .await?;
    check!(cri.exited(&made).await?.exit_code == 0, "exit");
    let status = cri.status(&made).await?;
    let path = dir.join("main/0.log");
    check!(
        status.log_path == path.display().to_string(),
        "{}",
        status.log_path
    );
    let mut expected = b"one\n".to_vec();
    expected.extend(vec![b'x'; 40_000]);
    expected.extend(b"\nbin\x01\xff\nlast");
    let got = read(&path, "stdout")?;
    // Whether the unfinished last line counts as a line is the runtime's choice.
    let got = got.strip_suffix(b"\n").unwrap_or(&got);
    check!(got == expected, "{} bytes of {}", got.len(), expected.len());
    check!(read(&path, "stderr")? == b"two\n", "stderr");
    Ok(cri.remove_pod(&id).await?)
}

async fn a_rotated_log_is_opened_anew(context: &mut Context) -> Outcome {
    let (config, dir) = logging_pod(context, "rotate");
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let id = cri.run_pod(config.clone()).await?;
    let text = "n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo $n; usleep 20000; done; sleep 1000";
    let made = cri
        .run(&id, &config, logged(script("main", BUSYBOX, text), "0.log"))
        .await?;
    let (path, old) = (dir.join("0.log"), dir.join("0.log.rotated"));
    let mut progress = Progress::default();
    while fs::metadata(&path).map_or(0, |meta| meta.len()) < 500 {
        progress.pause(0, "the first lines").await?;
    }
    fs::rename(&path, &old)?;
    let request = ReopenContainerLogRequest {
        container_id: made.clone(),
    };
    cri.runtime.clone().reopen_container_log(request).await?;
    check!(path.exists(), "the log is not there again");
    let expected: String = (1..=400).map(|n| format!("{n}\n")).collect();
    loop {
        let mut got = read(&old, "stdout")?;
        got.extend(read(&path, "stdout")?);
        if got == expected.as_bytes() {
            break;
        }
        let tail = String::from_utf8_lossy(&got[got.len().saturating_sub(40)..]).into_owned();
        let what = format!("all lines; the last are {tail:?}");
        progress.pause(got.len(), &what).await?;
    }
    check!(
        fs::metadata(&path)?.len() > 0,
        "nothing came after the rotation"
    );
    Ok(cri.remove_pod(&id).await?)
}
