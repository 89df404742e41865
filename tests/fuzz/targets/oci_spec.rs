//! The OCI spec of a container, and the commands run in it: what is refused is refused by an error,
//! and what passes can be executed as it stands.
#![no_main]

use bulkhead_agent::container::spec::{check_process, exec_process, parse};
use libfuzzer_sys::fuzz_target;

// A spec, a working directory, and arguments and environment of a command, each up to a zero: no
// JSON has one.
fuzz_target!(|input: &[u8]| {
    let mut parts = input.split(|byte| *byte == 0);
    let json = parts.next().unwrap_or_default();
    let mut strings = parts.map(|part| String::from_utf8_lossy(part).into_owned());
    let cwd = strings.next().unwrap_or_default();
    let (mut args, mut env) = (Vec::new(), Vec::new());
    for (number, string) in strings.enumerate() {
        // A zero byte that JSON can have, too.
        let string = string.replace("\\0", "\0");
        [&mut args, &mut env][number % 2].push(string);
    }
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
    let tty = env.len() % 2 == 1;
    let Ok(exec) = exec_process(process, &args, &env, &cwd, tty) else {
        return;
    };
    assert!(exec.cwd().is_absolute());
    assert_eq!(exec.args().as_ref(), Some(&args));
    assert_eq!(exec.terminal(), Some(tty));
    let environment = exec.env().clone().unwrap_or_default();
    assert!(
        args.iter()
            .chain(&environment)
            .all(|string| !string.contains('\0'))
    );
    // Of the entries of one name that are given, the last one counts, and it is the only one.
    let name = |entry: &String| entry.split_once('=').map(|(name, _)| name.to_owned());
    assert!(
        environment
            .iter()
            .all(|entry| name(entry).is_some_and(|name| !name.is_empty()))
    );
    for (at, entry) in env.iter().enumerate() {
        let same = |other: &&String| name(other) == name(entry);
        assert_eq!(environment.iter().filter(same).count(), 1);
        let last = !env.iter().skip(at + 1).any(|other| same(&other));
        assert!(!last || environment.contains(entry));
    }
});
