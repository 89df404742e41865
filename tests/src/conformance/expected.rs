//! The specs that are known to fail, from `tests/conformance/expected-failures`, and the verdict on
//! a spec in their light. Pure.

use super::specs::{Name, Outcome};

/// The file, as it was when the tests were built.
pub const FILE: &str = include_str!("../../conformance/expected-failures");

/// A spec that fails on a handler, and why that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The run it fails in: `kvm`, `host`.
    pub run: String,
    /// The spec.
    pub name: Name,
    /// Why it fails.
    pub reason: String,
}

/// Reads the file: lines `run | spec | reason`; empty lines and those that begin with `#` say
/// nothing.
///
/// # Errors
/// Which line is wrong.
pub fn parse(text: &str) -> Result<Vec<Expected>, String> {
    let mut all: Vec<Expected> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.splitn(3, " | ").map(|field| field.trim().to_owned());
        let (Some(run), Some(name), Some(reason)) = (fields.next(), fields.next(), fields.next())
        else {
            let number = number + 1;
            return Err(format!(
                "line {number} of expected-failures is not `run | spec | reason`: {line}"
            ));
        };
        if all.iter().any(|e| e.run == run && e.name == name) {
            return Err(format!("expected-failures has {name} twice for {run}"));
        }
        all.push(Expected { run, name, reason });
    }
    Ok(all)
}

/// What a spec counts as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Passed.
    Ok,
    /// Did not run, or failed as it is known to: why.
    Skip(String),
    /// Failed: why.
    Fail(String),
}

/// The reasons for which a spec may skip itself. Others hide what is missing in the runtime.
const MAY_SKIP: [&str; 3] = [
    "NRI socket not configured",
    "AppArmor is disabled on this host",
    "SELinux is not",
];

/// The verdict: a spec that is listed and passes is as wrong as one that is not and fails.
#[must_use]
pub fn judge(outcome: &Outcome, expected: Option<&Expected>) -> Verdict {
    match (outcome, expected) {
        (Outcome::Passed, None) => Verdict::Ok,
        (Outcome::Skipped(why), None) if MAY_SKIP.iter().any(|part| why.starts_with(part)) => {
            Verdict::Skip(why.clone())
        }
        (Outcome::Skipped(why), None) => Verdict::Fail(format!("it skips itself: {why}")),
        (Outcome::Failed(why), None) => Verdict::Fail(why.clone()),
        (Outcome::Failed(_) | Outcome::Skipped(_), Some(known)) => {
            Verdict::Skip(format!("expected failure: {}", known.reason))
        }
        (Outcome::Passed, Some(known)) => Verdict::Fail(format!(
            "it passes: take it out of tests/conformance/expected-failures (there: {})",
            known.reason
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_well_formed() {
        let all = parse(FILE).expect("the file");
        for known in all {
            assert!(!known.reason.is_empty(), "{known:?}");
        }
    }

    #[test]
    fn a_bad_line_is_told() {
        assert!(parse("kvm | a").is_err());
        assert!(parse("kvm | a | b\nkvm | a | c").is_err());
        let one = parse("# x\n\n kvm | a | b | c \n").expect("a line");
        assert_eq!(one[0].reason, "b | c");
    }

    #[test]
    fn a_list_too_long_or_too_short_fails() {
        let known = Expected {
            run: "kvm".to_owned(),
            name: "a".to_owned(),
            reason: "why".to_owned(),
        };
        let bad = Outcome::Failed("x".to_owned());
        let no = Outcome::Skipped("NRI socket not configured (use it)".to_owned());
        let hidden = Outcome::Skipped("Image Volumes are not yet supported".to_owned());
        let fails = |verdict| matches!(verdict, Verdict::Fail(_));
        assert_eq!(judge(&Outcome::Passed, None), Verdict::Ok);
        assert!(fails(judge(&Outcome::Passed, Some(&known))));
        assert!(fails(judge(&bad, None)));
        assert!(!fails(judge(&bad, Some(&known))));
        assert!(!fails(judge(&no, None)));
        assert!(fails(judge(&hidden, None)));
        assert!(!fails(judge(&hidden, Some(&known))));
    }
}
