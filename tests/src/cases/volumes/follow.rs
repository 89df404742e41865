//! What changes on the host and is seen in the pod.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant as Clock},
};

use tokio::time::Instant;

use super::{
    super::{image, logs},
    support::{Scratch, mount, read_only, with},
};
use crate::{
    Failure, Outcome, check,
    cri::{PATIENCE, container, pause},
    suite::{Context, LIMIT, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![test!(
        "volumes",
        a_config_map_turns_under_inotify,
        LIMIT * 3
    )]
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
    // The kubelet makes the place for a volume that the pod mounts inside.
    fs::create_dir_all(root.join("inner/deep"))?;
    let inner = scratch.dir("inner")?;
    turn(&root, 0)?;
    let (config, dir) = logs::logging_pod(context, "config");
    let id = context.cri.run_pod(config.clone()).await?;
    let watcher = with(
        logs::logged(container("watch", &tools, &watch), "watch.log"),
        vec![
            read_only(mount(&root, "/config")),
            mount(&inner, "/config/inner/deep"),
        ],
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

    // What is mounted inside stays through all of them.
    let touch = "touch /config/inner/deep/still";
    context.cri.shell(&watcher, touch).await?;
    check!(inner.join("still").exists(), "the volume inside is gone");

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
