//! What the documentation tells an operator to type works: `tests/docs.sh` types it.

use std::{path::Path, time::Duration};

use tokio::process::Command;

use crate::{
    Outcome,
    suite::{Context, Test},
    test,
};

/// For all pages together.
const LIMIT: Duration = Duration::from_secs(1200);

pub(super) fn tests() -> Vec<Test> {
    vec![test!("docs", every_command_works, LIMIT).with_crictl()]
}

async fn every_command_works(_context: &mut Context) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs.sh");
    let done = Command::new(&script).kill_on_drop(true).output().await?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stdout);
        let complaint = String::from_utf8_lossy(&done.stderr);
        return Err(format!("{}: {}\n{said}{complaint}", script.display(), done.status).into());
    }
    Ok(())
}
