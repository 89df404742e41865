//! The OCI spec of a container, and the commands run in it: what is refused is refused by an error,
//! and what passes can be executed as it stands.
#![no_main]

use bulkhead_agent::container::spec::{check_process, exec_process, parse};
use libfuzzer_sys::fuzz_target;

// A spec, and arguments of a command, each up to a zero: no JSON has one.
fuzz_target!(|input: &[u8]| {
    let mut parts = input.split(|byte| *byte == 0);
    let json = parts.next().unwrap_or_default();
    // A zero byte that JSON can have, too.
    let args: Vec<_> = parts
        .map(|part| String::from_utf8_lossy(part).replace("\\0", "\0"))
        .collect();
    // Else it is part of a process: a fuzzer need not find all that must be there.
    let part = String::from_utf8_lossy(json);
    let whole = format!(
        r#"{{"ociVersion":"1.2.0","process":{{"cwd":"/","user":{{"uid":0,"gid":0}},{part}}}}}"#
    );
    let Ok(spec) = parse(json).or_else(|_| parse(whole.as_bytes())) else {
        return;
    };
    let Some(process) = spec.process() else {
        return;
    };
    if check_process(process).is_ok() {
        assert!(process.cwd().is_absolute());
        assert!(process.args().iter().flatten().count() > 0);
    }
    let tty = args.len() % 2 == 1;
    let Ok(exec) = exec_process(process, &args, tty) else {
        return;
    };
    assert!(exec.cwd().is_absolute());
    assert_eq!(exec.cwd(), process.cwd());
    assert_eq!(exec.args().as_ref(), Some(&args));
    assert_eq!(exec.terminal(), Some(tty));
    let environment = exec.env().clone().unwrap_or_default();
    assert!(
        args.iter()
            .chain(&environment)
            .all(|string| !string.contains('\0'))
    );
    let named = |entry: &String| {
        entry
            .split_once('=')
            .is_some_and(|(name, _)| !name.is_empty())
    };
    assert!(environment.iter().all(named));
    // The container's environment, with TERM for a terminal if there is none.
    let own = process.env().clone().unwrap_or_default();
    let terms = |list: &[String]| list.iter().any(|entry| entry.starts_with("TERM="));
    assert!(environment.starts_with(&own));
    assert_eq!(
        environment.len() - own.len(),
        usize::from(tty && !terms(&own))
    );
});
