//! The tests with a real Kubernetes, in the namespaces that tests/kube.sh makes:
//! `bulkhead-kube --list [FILTER…]` prints the cases, `bulkhead-kube cases WORK RESULTS [FILTER…]` runs them;
//! `bulkhead-kube node …` is the node's side.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, path::PathBuf, process::ExitCode};

use bulkhead_tests::{
    Failure,
    kube::{node, runner},
    suite::Sums,
};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(act(&args)),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(sums)) => {
            println!(
                "{} passed, {} failed, {} skipped",
                sums.passed, sums.failed, sums.skipped
            );
            ExitCode::from(u8::from(sums.failed > 0))
        }
        Err(error) => {
            println!("FAIL kube: {error}");
            ExitCode::from(2)
        }
    }
}

async fn act(args: &[String]) -> Result<Option<Sums>, Failure> {
    match args {
        [list, filters @ ..] if list == "--list" => {
            for case in runner::chosen(filters) {
                println!("{}", case.name);
            }
            Ok(None)
        }
        [cases, work, results, filters @ ..] if cases == "cases" => {
            let (work, results) = (PathBuf::from(work), PathBuf::from(results));
            let sums = runner::run(&work, &results, filters).await;
            if sums.is_err() {
                runner::keep_logs(&work, &results)?;
            }
            sums.map(Some)
        }
        [node, name, address, dir, certificates] if node == "node" => {
            let settings = node::Settings {
                name: name.clone(),
                address: address.clone(),
                dir: dir.into(),
                certificates: certificates.into(),
            };
            node::run(&settings).await.map(|()| None)
        }
        _ => Err("usage: bulkhead-kube --list|cases|node …".into()),
    }
}
