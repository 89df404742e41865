//! The benchmark: `bulkhead-bench [--pods N] [--repeat N] [--peer qemu|firecracker=PATH]…
//! [--only-peer] [--only-streams] [--only-layers] [--only-memory] [--json FILE] [--results DIR]`, as root in the test
//! host, and with `--only-lists` on the machine itself (tests/bench.sh does all that). Exit code 1 if a
//! number that is to be held is missed, 2 if something did not work.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, fs, path::PathBuf, process::ExitCode};

use bulkhead_tests::{
    Failure, Outcome,
    bench::{
        figures::Figures,
        lists,
        node::{self, Effort, Scope},
        peer::{self, Peer},
    },
};

/// Starts compared with a peer, unless asked otherwise.
const PEER_REPEAT: usize = 5;

#[derive(Debug)]
struct Args {
    effort: Effort,
    peers: Vec<Peer>,
    only_peer: bool,
    only_lists: bool,
    scope: Scope,
    json: Option<PathBuf>,
    results: PathBuf,
}

fn main() -> ExitCode {
    let args = match parse(env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!(
                "bulkhead-bench: {error}\nusage: bulkhead-bench [--pods N] [--repeat N] \
                 [--peer qemu|firecracker=PATH]… [--only-peer] [--only-streams] \
                 [--only-layers] [--only-memory] [--only-lists] [--json FILE] [--results DIR]"
            );
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let mut figures = Figures::default();
    let done = runtime.block_on(run(&args, &mut figures));
    // What was measured before a failure is still worth reading.
    println!("\n{}", figures.table());
    if let Err(error) = done {
        eprintln!("bulkhead-bench: {error}");
        return ExitCode::from(2);
    }
    if let Some(path) = &args.json
        && let Err(error) = fs::write(path, format!("{:#}\n", figures.json()))
    {
        eprintln!("bulkhead-bench: writing {}: {error}", path.display());
        return ExitCode::from(2);
    }
    if figures.all_hold() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn run(args: &Args, figures: &mut Figures) -> Outcome {
    if args.only_lists {
        return lists::measure(&args.results, args.effort.repeat, figures).await;
    }
    if !args.only_peer {
        node::measure(&args.results, args.effort, args.scope, figures).await?;
    }
    for peer in &args.peers {
        let need = |name: &str| -> Result<PathBuf, Failure> {
            let value = env::var_os(name);
            Ok(value
                .ok_or_else(|| format!("{name} is not set: `make bench` sets it"))?
                .into())
        };
        let work = PathBuf::from(format!("/var/lib/bulkhead/bench-{}", std::process::id()));
        let (bin, reader) = (need("BULKHEAD_BIN_DIR")?, need("BULKHEAD_BENCH_GUEST")?);
        let repeat = args.effort.repeat.min(PEER_REPEAT);
        peer::compare(peer, &bin, &reader, &work, repeat, figures).await?;
    }
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, Failure> {
    let mut args = Args {
        effort: Effort {
            pods: 5,
            repeat: 10,
        },
        peers: Vec::new(),
        only_peer: false,
        only_lists: false,
        scope: Scope::All,
        json: None,
        results: PathBuf::from("/tmp/bulkhead-bench"),
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--pods" => args.effort.pods = value()?.parse()?,
            "--repeat" => args.effort.repeat = value()?.parse()?,
            "--only-peer" => args.only_peer = true,
            "--only-lists" => args.only_lists = true,
            "--only-streams" => args.scope = Scope::Streams,
            "--only-layers" => args.scope = Scope::Layers,
            "--only-memory" => args.scope = Scope::Memory,
            "--json" => args.json = Some(value()?.into()),
            "--results" => args.results = value()?.into(),
            "--peer" => args.peers.push(which_peer(&value()?)?),
            _ => return Err(format!("{word}: not known").into()),
        }
    }
    if args.effort.pods == 0 || args.effort.repeat == 0 {
        return Err("--pods and --repeat are at least 1".into());
    }
    Ok(args)
}

fn which_peer(text: &str) -> Result<Peer, Failure> {
    match text.split_once('=') {
        None if text == "qemu" => Ok(Peer::Qemu),
        Some(("firecracker", path)) if !path.is_empty() => Ok(Peer::Firecracker(path.into())),
        _ => Err(format!("--peer {text}: qemu and firecracker=PATH are known").into()),
    }
}
