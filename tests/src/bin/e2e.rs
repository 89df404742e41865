//! The end-to-end tests and critest: `bulkhead-tests [--node N] [--claims DIR] [--results DIR]
//! [FILTER…]`, as root in the test host (tests/run.sh does all that). `--list` prints the names of the
//! tests instead, `--list-crictl` of those that call crictl or are critest's.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, path::PathBuf, process::ExitCode};

use bulkhead_tests::{Failure, cases, conformance, suite};

fn main() -> ExitCode {
    let mut plan = suite::Plan {
        filters: Vec::new(),
        node: 1,
        claims: None,
        results: PathBuf::from("/tmp/bulkhead-results"),
    };
    let tests = cases::all();
    let (mut list, mut only_crictl) = (false, false);
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => list = true,
            "--list-crictl" => (list, only_crictl) = (true, true),
            "--node" => match args.next().and_then(|number| number.parse().ok()) {
                Some(number) => plan.node = number,
                None => return usage(),
            },
            "--claims" => match args.next() {
                Some(dir) => plan.claims = Some(dir.into()),
                None => return usage(),
            },
            "--results" => match args.next() {
                Some(dir) => plan.results = dir.into(),
                None => return usage(),
            },
            option if option.starts_with('-') => return usage(),
            filter => plan.filters.push(filter.to_owned()),
        }
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if list {
        if let Some(plan) = conformance::without(&plan) {
            for test in suite::chosen(&tests, &plan) {
                if test.crictl || !only_crictl {
                    println!("{}", test.name);
                }
            }
        }
        if only_crictl && conformance::wanted(&plan) {
            // Its specs are not known without it.
            println!("critest");
            return ExitCode::SUCCESS;
        }
        return match runtime.block_on(conformance::claims(&plan)) {
            Ok(claims) => {
                claims.iter().for_each(|claim| println!("{claim}"));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    match runtime.block_on(both(&tests, &plan)) {
        Ok(sums) => {
            println!(
                "{} passed, {} failed, {} skipped",
                sums.passed, sums.failed, sums.skipped
            );
            if sums.failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("the node for the tests: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The end-to-end tests, then critest.
async fn both(tests: &[suite::Test], plan: &suite::Plan) -> Result<suite::Sums, Failure> {
    let mut sums = match conformance::without(plan) {
        Some(plan) => suite::run(tests, &plan).await?,
        None => suite::Sums::default(),
    };
    sums.add(conformance::run(plan).await?);
    Ok(sums)
}

fn usage() -> ExitCode {
    eprintln!(
        "usage: bulkhead-tests [--list|--list-crictl] [--node N] [--claims DIR] [--results DIR] [FILTER…]"
    );
    ExitCode::from(2)
}
