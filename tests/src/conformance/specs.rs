//! critest's specs: their list and outcomes out of Ginkgo's JSON report, and how they are shared
//! out in batches. Pure; who starts critest is [`super::run`].

use serde::Deserialize;

/// A spec by the texts that lead to it, without the `[k8s.io] ` all of them begin with.
pub type Name = String;

/// What became of a spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It held.
    Passed,
    /// It did not, and what it said.
    Failed(String),
    /// It says that it cannot run here, and why.
    Skipped(String),
}

/// A spec in a report.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name.
    pub name: Name,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it took.
    pub seconds: f64,
    /// What it wrote while it ran.
    pub output: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawReport {
    spec_reports: Vec<RawSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawSpec {
    // Null where there are none.
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: i64,
    failure: Option<RawFailure>,
    #[serde(default)]
    captured_ginkgo_writer_output: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawFailure {
    #[serde(default)]
    message: String,
    location: Option<RawLocation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawLocation {
    #[serde(default)]
    file_name: String,
    #[serde(default)]
    line_number: u32,
}

/// The specs of a report that ran, were to run, or say why they did not. Not those that were
/// filtered out.
///
/// # Errors
/// If the text is no such report.
pub fn parse(json: &str) -> Result<Vec<Spec>, serde_json::Error> {
    let reports: Vec<RawReport> = serde_json::from_str(json)?;
    let raw = reports.into_iter().flat_map(|report| report.spec_reports);
    Ok(raw
        .filter(|spec| spec.leaf_node_type == "It")
        .filter_map(spec)
        .collect())
}

fn spec(raw: RawSpec) -> Option<Spec> {
    let mut words = raw.container_hierarchy_texts.unwrap_or_default();
    words.push(raw.leaf_node_text);
    let full = words.join(" ");
    let name = full.strip_prefix(PREFIX).unwrap_or(&full).to_owned();
    let said = raw.failure.map(|failure| {
        let place = failure.location.map_or_else(String::new, |place| {
            let file = place.file_name.rsplit('/').next().unwrap_or_default();
            format!(" ({file}:{})", place.line_number)
        });
        format!("{}{place}", brief(&failure.message))
    });
    let outcome = match (raw.state.as_str(), said) {
        ("passed", _) => Outcome::Passed,
        // Filtered out, or given up with the suite: who asked for it misses it.
        ("skipped", None) => return None,
        ("skipped", Some(why)) => {
            // The place of a `Skip` is of no use to the reader.
            let end = why.rfind(" (").unwrap_or(why.len());
            Outcome::Skipped(why.get(..end).unwrap_or(&why).to_owned())
        }
        (state, said) => Outcome::Failed(format!("{state}: {}", said.unwrap_or_default())),
    };
    Some(Spec {
        name,
        outcome,
        #[expect(clippy::cast_precision_loss, reason = "for the reader's eye")]
        seconds: raw.run_time as f64 / 1e9,
        output: raw.captured_ginkgo_writer_output,
    })
}

/// A message in one line, and a gRPC error in it without the Go structure it is kept in.
fn brief(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    let Some((before, error)) = line.split_once("rpc error: ") else {
        return line;
    };
    let before = before
        .split_once(" Unexpected error:")
        .map_or(before, |(before, _)| before);
    let error = error.split_once(" { s: {").map_or(error, |(text, _)| text);
    format!("{}: {error}", before.trim_end_matches([':', ' ']))
}

const PREFIX: &str = "[k8s.io] ";

/// The regular expression (Go's) that Ginkgo takes for these specs and no others. It matches
/// against the suite's name and the whole text of a spec.
#[must_use]
pub fn focus(names: &[Name]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| quote(name)).collect();
    format!("^CRI validation {}({})$", quote(PREFIX), quoted.join("|"))
}

fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        if letter.is_ascii_punctuation() {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted
}

/// What specs of a batch may run beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Beside {
    /// Nothing on the same node: they count and remove images that others use, or are marked
    /// `Serial` for another reason.
    Nothing,
    /// Whatever does not use the fixed ports of the host that they use.
    OtherPorts,
    /// Anything.
    Anything,
}

/// Ginkgo's report does not say which specs are `Serial`; these contexts are.
const SERIAL: [&str; 4] = [
    "Image Manager ",
    "Image Consistency ",
    "Image Identifier Consistency ",
    "NRI ",
];
/// Specs that listen at a port of the host or dial one: 12000 to 12003.
const PORTS: [&str; 3] = ["host port and container port", "portforward", "HostNetwork"];

impl Beside {
    /// That of a spec.
    #[must_use]
    pub fn of(name: &str) -> Self {
        if SERIAL.iter().any(|context| name.starts_with(context)) {
            Self::Nothing
        } else if PORTS.iter().any(|text| name.contains(text)) {
            Self::OtherPorts
        } else {
            Self::Anything
        }
    }
}

/// Some specs that one critest runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What they may run beside.
    pub beside: Beside,
    /// The specs.
    pub names: Vec<Name>,
}

/// Shares specs out in batches of at most `size`; those that run alone are one batch.
#[must_use]
pub fn batches(names: &[Name], size: usize) -> Vec<Batch> {
    let mut all = Vec::new();
    for beside in [Beside::Nothing, Beside::OtherPorts, Beside::Anything] {
        let mut of_kind: Vec<Name> = names
            .iter()
            .filter(|name| Beside::of(name) == beside)
            .cloned()
            .collect();
        of_kind.sort();
        let size = if beside == Beside::Nothing {
            of_kind.len()
        } else {
            size
        };
        // Dealt like cards: neighbours in the list are alike, also in how long they take.
        let count = of_kind.len().div_ceil(size.max(1));
        for first in 0..count {
            let names = of_kind.iter().skip(first).step_by(count).cloned().collect();
            all.push(Batch { beside, names });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_became_of_each_spec() {
        let json = r#"[{"SpecReports": [
            {"ContainerHierarchyTexts": null, "LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeType": "It", "LeafNodeText": "c", "State": "passed", "RunTime": 1500000000},
            {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "filtered", "State": "skipped"},
            {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "no", "State": "skipped",
             "Failure": {"Message": "not on this host (really)", "Location": {"FileName": "x/y.go", "LineNumber": 3}}},
            {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "bad", "State": "failed",
             "Failure": {"Message": "want 1\n  got 2", "Location": {"FileName": "x/y.go", "LineNumber": 4}}}]}]"#;
        let specs = parse(json).expect("a report");
        let told: Vec<_> = specs
            .iter()
            .map(|s| (s.name.as_str(), &s.outcome))
            .collect();
        assert_eq!(
            told,
            [
                ("A b c", &Outcome::Passed),
                (
                    "A no",
                    &Outcome::Skipped("not on this host (really)".to_owned())
                ),
                (
                    "A bad",
                    &Outcome::Failed("failed: want 1 got 2 (y.go:4)".to_owned())
                ),
            ]
        );
        assert!(parse("{}").is_err());
    }

    #[test]
    fn an_error_is_told_without_its_structure() {
        let said = "failed to run Unexpected error:\n    <*status.Error | 0xdc>: \n    rpc error: code = NotFound desc = no {such} pod\n    {\n s: {\n s: {} } }\noccurred";
        assert_eq!(
            brief(said),
            "failed to run: code = NotFound desc = no {such} pod"
        );
        assert_eq!(brief(" a\n  b "), "a b");
    }

    #[test]
    fn every_spec_is_in_one_batch() {
        let mut names: Vec<Name> = (0..25).map(|n| format!("Container spec {n:02}")).collect();
        names.extend((0..12).map(|n| format!("Image Manager spec {n}")));
        names.push("Streaming portforward".to_owned());
        let batches = batches(&names, 8);
        let kinds: Vec<_> = batches.iter().map(|b| (b.beside, b.names.len())).collect();
        assert_eq!(
            kinds,
            [
                (Beside::Nothing, 12),
                (Beside::OtherPorts, 1),
                (Beside::Anything, 7),
                (Beside::Anything, 6),
                (Beside::Anything, 6),
                (Beside::Anything, 6),
            ]
        );
        let mut all: Vec<Name> = batches.into_iter().flat_map(|b| b.names).collect();
        all.sort();
        names.sort();
        assert_eq!(all, names);
        assert_eq!(super::batches(&[], 8), []);
    }

    #[test]
    fn names_are_quoted_for_ginkgo() {
        assert_eq!(
            focus(&["A [x]".to_owned(), "tty=false.".to_owned()]),
            r"^CRI validation \[k8s\.io\] (A \[x\]|tty\=false\.)$"
        );
    }
}
