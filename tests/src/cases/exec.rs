//! ExecSync.

use tonic::Code;

use super::BUSYBOX;
use crate::{
    Outcome, check,
    cri::{pod, script},
    suite::{Context, Test},
    test,
};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!("exec", output_and_exit_code_come_back_whole),
        test!("exec", a_time_out_kills_the_process_and_not_the_container),
        test!("exec", what_cannot_run_says_so),
    ]
}

async fn output_and_exit_code_come_back_whole(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("exec");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    let done = cri
        .exec(&made, &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
        .await?;
    check!(done.exit_code == 3, "{done:?}");
    check!(
        done.stdout == b"out\n" && done.stderr == b"err\n",
        "{done:?}"
    );
    let done = cri.exec(&made, &["seq", "1", "100000"]).await?;
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    check!(
        done.stdout == expected.as_bytes(),
        "{} bytes of {}",
        done.stdout.len(),
        expected.len()
    );
    // A process left in the background holds the pipe: the answer must not wait for it.
    let done = cri
        .exec(&made, &["/bin/sh", "-c", "sleep 1000 & echo done"])
        .await?;
    check!(done.stdout == b"done\n" && done.exit_code == 0, "{done:?}");
    // More than the cap of 16 MiB: cut, and the process is not held up.
    let done = cri
        .exec(&made, &["/bin/sh", "-c", "head -c 18000000 /dev/zero"])
        .await?;
    check!(
        done.stdout.len() == 16 << 20 && done.exit_code == 0,
        "{}",
        done.stdout.len()
    );
    Ok(cri.remove_pod(&id).await?)
}

async fn a_time_out_kills_the_process_and_not_the_container(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("exec-time");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("main", BUSYBOX, "sleep 1000"))
        .await?;
    let late = cri.exec_for(&made, &["sleep", "555"], 1).await;
    check!(
        late.as_ref()
            .is_err_and(|s| s.code() == Code::DeadlineExceeded),
        "{late:?}"
    );
    let left = cri.shell(&made, "ps | grep 'sleep 55[5]' || true").await?;
    check!(left.is_empty(), "the process is still there: {left}");
    let status = cri.status(&made).await?;
    check!(status.finished_at == 0, "{status:?}");
    Ok(cri.remove_pod(&id).await?)
}

async fn what_cannot_run_says_so(context: &mut Context) -> Outcome {
    let cri = &context.cri;
    cri.pull(BUSYBOX).await?;
    let config = pod("exec-not");
    let id = cri.run_pod(config.clone()).await?;
    let made = cri
        .run(&id, &config, script("main", BUSYBOX, "exec sleep 1000"))
        .await?;
    let missing = cri.exec(&made, &["/no/such/program"]).await;
    check!(
        missing
            .as_ref()
            .is_err_and(|s| s.message().contains("/no/such/program")),
        "{missing:?}"
    );
    let file = cri.exec(&made, &["/etc/passwd"]).await;
    check!(file.is_err(), "{file:?}");
    let empty = cri.exec(&made, &[]).await;
    check!(
        empty
            .as_ref()
            .is_err_and(|s| s.code() == Code::InvalidArgument),
        "{empty:?}"
    );
    cri.stop(&made, 0).await?;
    let dead = cri.exec(&made, &["true"]).await;
    check!(
        dead.as_ref()
            .is_err_and(|s| s.code() == Code::FailedPrecondition),
        "{dead:?}"
    );
    Ok(cri.remove_pod(&id).await?)
}
