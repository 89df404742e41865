//! Runs the tests one after the other: each with a time limit and, on the shared node, a look for
//! leaks after it. Prints a line per test and the sum.

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    time::{Duration, Instant},
};

use bulkhead_proto::cri::ListPodSandboxRequest;

use crate::{
    Failure, Outcome,
    cri::Cri,
    host::{Host, Options},
    leaks::Snapshot,
};

/// What a test works on: the shared node and a client of it.
#[derive(Debug)]
pub struct Context {
    /// The node. Tests may stop and start its daemon.
    pub host: Host,
    /// A client of the node's daemon.
    pub cri: Cri,
    /// Where results go.
    pub results: PathBuf,
}

/// A running test.
pub type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

/// A test: its name, what it does, how long it may take.
#[derive(Clone, Copy)]
pub struct Test {
    /// `theme::what_holds`.
    pub name: &'static str,
    /// The test.
    pub run: for<'a> fn(&'a mut Context) -> Running<'a>,
    /// After this it has failed.
    pub limit: Duration,
    /// Whether it calls crictl, whose first build takes minutes.
    pub crictl: bool,
}

impl Test {
    /// The same test, which calls crictl.
    #[must_use]
    pub fn with_crictl(self) -> Self {
        Self {
            crictl: true,
            ..self
        }
    }
}

impl std::fmt::Debug for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The usual limit, for a test that hangs: what it waits for is given up earlier, and with a word.
pub const LIMIT: Duration = Duration::from_secs(360);

/// Makes a [`Test`] of an async function of the same name: `test!(theme, function)`.
#[macro_export]
macro_rules! test {
    ($theme:literal, $function:ident) => {
        $crate::test!($theme, $function, $crate::suite::LIMIT)
    };
    ($theme:literal, $function:ident, $limit:expr) => {
        $crate::suite::Test {
            name: concat!($theme, "::", stringify!($function)),
            run: |context| Box::pin($function(context)),
            limit: $limit,
            crictl: false,
        }
    };
}

/// A test says by this error that it cannot run here, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Only tests whose name contains one of these; empty means all.
    pub filters: Vec<String>,
    /// The number of this node, from 1: several may run the plan together.
    pub node: usize,
    /// Where nodes that share the plan mark the tests they have taken; `None` for one alone.
    pub claims: Option<PathBuf>,
    /// Where results go.
    pub results: PathBuf,
}

/// The sums of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sums {
    /// Tests that held.
    pub passed: usize,
    /// Tests that did not.
    pub failed: usize,
    /// Tests that could not run here.
    pub skipped: usize,
}

impl Sums {
    /// These and others.
    pub fn add(&mut self, others: Self) {
        self.passed += others.passed;
        self.failed += others.failed;
        self.skipped += others.skipped;
    }
}

/// The plan's tests in their order: the longest first, so that nodes that share them end together.
#[must_use]
pub fn chosen(tests: &[Test], plan: &Plan) -> Vec<Test> {
    let mut chosen: Vec<Test> = tests
        .iter()
        .filter(|t| plan.filters.is_empty() || plan.filters.iter().any(|f| t.name.contains(f)))
        .copied()
        .collect();
    chosen.sort_by_key(|test| std::cmp::Reverse(test.limit));
    chosen
}

/// Runs the plan.
///
/// # Errors
/// If the node cannot be brought up at all.
pub async fn run(tests: &[Test], plan: &Plan) -> Result<Sums, Failure> {
    let mut sums = Sums::default();
    let mut context = up(plan).await?;
    for test in chosen(tests, plan) {
        if !claim(plan, test.name)? {
            continue;
        }
        let began = Instant::now();
        let outcome = one(&test, &mut context).await;
        let took = began.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                sums.passed += 1;
                println!("ok {} ({took:.1} s)", test.name);
            }
            Err(error) if error.is::<Skip>() => {
                sums.skipped += 1;
                println!("skip {}: {error}", test.name);
            }
            Err(error) => {
                sums.failed += 1;
                println!(
                    "FAIL {} ({took:.1} s): {}",
                    test.name,
                    describe(error.as_ref())
                );
                show_tail(&context.host.log(), 25);
                // The next test shall not suffer from this one.
                drop(context);
                context = up(plan).await?;
            }
        }
    }
    context.host.stop_daemon().await?;
    Ok(sums)
}

/// Takes a test for this node; false if another has it. A directory is made by one alone, on the
/// file system the nodes share too.
///
/// # Errors
/// If the directory of claims cannot be written.
pub fn claim(plan: &Plan, name: &str) -> Result<bool, Failure> {
    let Some(claims) = &plan.claims else {
        return Ok(true);
    };
    match fs::create_dir(claims.join(name)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(format!("taking {name} in {}: {error}", claims.display()).into()),
    }
}

/// An error and its causes in one line.
fn describe(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    if let Some(status) = error.downcast_ref::<tonic::Status>() {
        return format!("{:?}: {}", status.code(), status.message());
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

async fn up(plan: &Plan) -> Result<Context, Failure> {
    let name = format!("node{}", plan.node);
    let mut host = Host::start(&name, &plan.results, Options::default()).await?;
    host.start_registry().await?;
    let cri = host.cri().await?;
    clean(&cri).await?;
    Ok(Context {
        host,
        cri,
        results: plan.results.clone(),
    })
}

/// Takes away what a failed test left.
async fn clean(cri: &Cri) -> Outcome {
    let pods = cri
        .runtime
        .clone()
        .list_pod_sandbox(ListPodSandboxRequest { filter: None })
        .await?;
    for pod in pods.into_inner().items {
        cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

async fn one(test: &Test, context: &mut Context) -> Outcome {
    let before = Snapshot::take(&context.host)?;
    let held = tokio::time::timeout(test.limit, (test.run)(context)).await;
    held.unwrap_or_else(|_| Err(format!("not done within {:?}", test.limit).into()))?;
    before.compare(&context.host).await
}

fn show_tail(path: &Path, lines: usize) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    for line in &all[all.len().saturating_sub(lines)..] {
        println!("    {line}");
    }
}
