//! Starting critest: batch by batch on a node of its own, several at once, and what it said as
//! lines and sums.

use std::{
    collections::HashMap,
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bulkhead_proto::cri::ListPodSandboxRequest;
use tokio::{process::Command, sync::Mutex};

use super::{
    LEFT_OUT, MIRRORED, RUNS, Run,
    expected::{self, Expected, Verdict},
    focuses,
    specs::{self, Batch, Beside, Name, Outcome, Spec},
};
use crate::{
    Failure,
    host::{Host, Options, REGISTRY},
    leaks::{Snapshot, output},
    suite::{self, Plan, Sums},
};

/// Specs of a batch: about a minute's in the emulated host, where critest takes a second to start.
const BATCH: usize = 8;
/// Batches that run at once on a node: many specs look every four seconds whether something is
/// there yet, and use no processor meanwhile.
const AT_ONCE: usize = 3;
/// After this Ginkgo gives up a batch; and after this critest is killed.
const LIMIT: Duration = Duration::from_secs(15 * 60);
const HARD_LIMIT: Duration = Duration::from_secs(17 * 60);
/// The claim for the tests of the list of expected failures itself.
const LIST: &str = "critest.expected-failures";

/// A batch of a run.
struct Job {
    run: Run,
    batch: Batch,
    claim: String,
}

/// The claims that a plan's nodes take between them.
///
/// # Errors
/// If critest does not list its specs.
pub async fn claims(plan: &Plan) -> Result<Vec<String>, Failure> {
    let Some(focuses) = focuses(plan) else {
        return Ok(Vec::new());
    };
    let all = jobs(&list().await?, &focuses);
    let claims = all.into_iter().map(|job| job.claim);
    Ok(claims.chain([LIST.to_owned()]).collect())
}

fn program() -> Result<PathBuf, Failure> {
    let dir = env::var_os("BULKHEAD_GO_TOOLS").map(PathBuf::from);
    let program = dir
        .map(|dir| dir.join("critest"))
        .filter(|path| path.exists());
    program.ok_or_else(|| "BULKHEAD_GO_TOOLS has no critest: run the tests by `make test`".into())
}

/// Runs critest and reads its report. Ginkgo ends with an error where a spec failed: that is no
/// error here.
async fn critest(
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    report: &Path,
    log: &Path,
) -> Result<Vec<Spec>, Failure> {
    let output = File::create(log)?;
    let child = Command::new(program()?)
        .arg(format!("-ginkgo.json-report={}", report.display()))
        .arg("-ginkgo.no-color")
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .kill_on_drop(true)
        .status();
    let status = tokio::time::timeout(HARD_LIMIT, child)
        .await
        .map_err(|_| format!("critest was killed after {HARD_LIMIT:?}"))??;
    let text = fs::read_to_string(report)
        .map_err(|error| format!("critest ended with {status} and left no report: {error}"))?;
    Ok(specs::parse(&text)?)
}

/// The names of all specs.
async fn list() -> Result<Vec<Name>, Failure> {
    let file = |kind| env::temp_dir().join(format!("critest-list.{}.{kind}", std::process::id()));
    let (report, log) = (file("json"), file("log"));
    let specs = critest(["-ginkgo.dry-run"], &report, &log).await;
    let _ = (fs::remove_file(report), fs::remove_file(log));
    Ok(specs?.into_iter().map(|spec| spec.name).collect())
}

fn jobs(names: &[Name], focuses: &[String]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for run in RUNS {
        let chosen: Vec<Name> = names
            .iter()
            .filter(|name| name.starts_with(run.only))
            .filter(|name| {
                let full = format!("{}: {name}", run.name);
                focuses.is_empty() || focuses.iter().any(|part| full.contains(part.as_str()))
            })
            .cloned()
            .collect();
        for (number, batch) in specs::batches(&chosen, BATCH).into_iter().enumerate() {
            let claim = format!("critest.{}.{number:02}", run.name);
            jobs.push(Job {
                run: *run,
                batch,
                claim,
            });
        }
    }
    // What must run alone first, then what must not meet its like.
    jobs.sort_by_key(|job| job.batch.beside);
    jobs
}

/// Runs the plan's share of critest.
///
/// # Errors
/// If critest does not list its specs or the node cannot be brought up.
pub async fn run(plan: &Plan) -> Result<Sums, Failure> {
    let mut sums = Sums::default();
    let Some(focuses) = focuses(plan) else {
        return Ok(sums);
    };
    let names = list().await?;
    let expected = expected::parse(expected::FILE)?;
    if suite::claim(plan, LIST)? {
        let wrong: Vec<String> = expected
            .iter()
            .filter(|e| !names.contains(&e.name) || !RUNS.iter().any(|run| run.name == e.run))
            .map(|e| format!("{} | {}", e.run, e.name))
            .collect();
        if wrong.is_empty() {
            sums.passed += 1;
            println!("ok critest: the expected failures are specs");
        } else {
            sums.failed += 1;
            println!("FAIL critest: expected-failures names no spec of a run: {wrong:?}");
        }
    }
    let mut host = up(plan).await?;
    let before = Snapshot::take(&host)?;
    let node = Node {
        plan,
        expected,
        endpoint: format!("unix://{}", host.socket().display()),
        ports: Mutex::new(()),
        sums: Mutex::new(sums),
    };
    let all = jobs(&names, &focuses);
    let (alone, others): (Vec<Job>, Vec<Job>) = all
        .into_iter()
        .partition(|job| job.batch.beside == Beside::Nothing);
    for job in alone {
        if suite::claim(plan, &job.claim)? {
            node.job(job).await?;
        }
    }
    let queue = Mutex::new(others.into_iter());
    let worker = || async {
        loop {
            let Some(job) = queue.lock().await.next() else {
                return Ok::<(), Failure>(());
            };
            if !suite::claim(plan, &job.claim)? {
                continue;
            }
            if job.batch.beside == Beside::OtherPorts {
                let _ports = node.ports.lock().await;
                node.job(job).await?;
            } else {
                node.job(job).await?;
            }
        }
    };
    for done in futures::future::join_all((0..AT_ONCE).map(|_| worker())).await {
        done?;
    }
    let mut sums = node.sums.into_inner();
    match left(&mut host, &before).await {
        Ok(()) => {
            sums.passed += 1;
            println!("ok critest: nothing is left on node {}", plan.node);
        }
        Err(error) => {
            sums.failed += 1;
            println!(
                "FAIL critest: something is left on node {}: {error}",
                plan.node
            );
        }
    }
    Ok(sums)
}

/// A node with all that critest wants: its images behind mirrors of their registries.
async fn up(plan: &Plan) -> Result<Host, Failure> {
    let name = format!("critest{}", plan.node);
    // On the handler `host` critest wants no filter at all where it asks for none.
    let options = Options {
        sections: "[host]\nallow_io_uring = true\n".to_owned(),
        ..Options::default()
    };
    let mut host = Host::start(&name, &plan.results, options).await?;
    host.start_registry().await?;
    for registry in MIRRORED {
        let dir = host.certs_dir().join(registry);
        fs::create_dir_all(&dir)?;
        let mirror = format!("http://{REGISTRY}/v2/{registry}");
        // The registry itself would be asked after the mirror, and is out of reach.
        let text = format!(
            "server = \"{mirror}\"\noverride_path = true\n[host.\"{mirror}\"]\noverride_path = true\n"
        );
        fs::write(dir.join("hosts.toml"), text)?;
    }
    Ok(host)
}

/// What a spec that failed did not take away is taken away; then nothing may be left.
async fn left(host: &mut Host, before: &Snapshot) -> Result<(), Failure> {
    let cri = host.cri().await?;
    let pods = cri
        .runtime
        .clone()
        .list_pod_sandbox(ListPodSandboxRequest { filter: None })
        .await?;
    for pod in pods.into_inner().items {
        cri.remove_pod(&pod.id).await?;
    }
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines().rev() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        // Sources that a spec mounts for itself, in its temporary directory.
        if point.starts_with("/tmp/test") {
            output("umount", &["-l", point])?;
        }
    }
    before.compare(host).await?;
    host.stop_daemon().await
}

/// What all batches on a node share.
struct Node<'a> {
    plan: &'a Plan,
    expected: Vec<Expected>,
    endpoint: String,
    /// Held by the batch that uses fixed ports of the host.
    ports: Mutex<()>,
    sums: Mutex<Sums>,
}

impl Node<'_> {
    /// Runs a batch and counts its specs.
    async fn job(&self, job: Job) -> Result<(), Failure> {
        let Job { run, batch, claim } = job;
        let left_out: HashMap<&str, &str> = LEFT_OUT.into_iter().collect();
        let (out, names): (Vec<Name>, Vec<Name>) = batch
            .names
            .into_iter()
            .partition(|name| left_out.contains_key(name.as_str()));
        for name in out {
            let why = left_out.get(name.as_str()).copied().unwrap_or_default();
            self.say(run, &name, Verdict::Skip(why.to_owned()), 0.0)
                .await;
        }
        if names.is_empty() {
            return Ok(());
        }
        // Not by `with_extension`: the claim's own dots are part of its name, and batches run side
        // by side.
        let file = |kind| self.plan.results.join(format!("{claim}.{kind}"));
        let args = [
            format!("-runtime-endpoint={}", self.endpoint),
            format!("-ginkgo.timeout={}s", LIMIT.as_secs()),
            format!("-ginkgo.focus={}", specs::focus(&names)),
        ];
        let args = args
            .into_iter()
            .chain(run.args.iter().map(|&a| a.to_owned()));
        let (report, log) = (file("json"), file("log"));
        let (mut told, missing) = match critest(args, &report, &log).await {
            Ok(specs) => (specs, "critest did not get to it".to_owned()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        for name in names {
            let spec = match told.iter().position(|spec| spec.name == name) {
                Some(at) => told.swap_remove(at),
                None => Spec {
                    outcome: Outcome::Failed(missing.clone()),
                    seconds: 0.0,
                    output: String::new(),
                    name,
                },
            };
            self.count(run, &spec.name, &spec.outcome, spec.seconds)
                .await;
            if matches!(spec.outcome, Outcome::Failed(_)) {
                let file = format!("{}: {}.txt", run.name, spec.name.replace('/', " "));
                fs::write(self.plan.results.join(file), spec.output)?;
            }
        }
        Ok(())
    }

    async fn count(&self, run: Run, name: &str, outcome: &Outcome, seconds: f64) {
        let known = self
            .expected
            .iter()
            .find(|e| e.run == run.name && e.name == name);
        let verdict = expected::judge(outcome, known);
        self.say(run, name, verdict, seconds).await;
    }

    async fn say(&self, run: Run, name: &str, verdict: Verdict, seconds: f64) {
        let mut sums = self.sums.lock().await;
        let run = run.name;
        match verdict {
            Verdict::Ok => {
                sums.passed += 1;
                println!("ok critest {run}: {name} ({seconds:.1} s)");
            }
            Verdict::Skip(why) => {
                sums.skipped += 1;
                println!("skip critest {run}: {name}: skipped: {why}");
            }
            Verdict::Fail(why) => {
                sums.failed += 1;
                println!("FAIL critest {run}: {name} ({seconds:.1} s): {why}");
            }
        }
    }
}
