//! The last word of a session, on its error stream: JSON since the fourth protocol, text before.

use serde_json::json;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The process ended with this code.
    Exit(i32),
    /// There is nothing more to say.
    Done,
    /// It could not be carried out.
    Failed(String),
}

/// How the client reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// A `metav1.Status`.
    Json,
    /// The error's text, or nothing.
    Text,
}

impl Format {
    /// Of a protocol's name.
    pub(crate) fn of(protocol: &str) -> Self {
        if protocol.starts_with("v4.") || protocol.starts_with("v5.") {
            Self::Json
        } else {
            Self::Text
        }
    }

    /// What to write, if anything.
    pub(crate) fn text(self, outcome: &Outcome) -> Option<String> {
        let nonzero = |code: &i32| format!("command terminated with non-zero exit code: {code}");
        match (self, outcome) {
            (Self::Text, Outcome::Exit(0) | Outcome::Done) => None,
            (Self::Text, Outcome::Exit(code)) => Some(nonzero(code)),
            (Self::Text, Outcome::Failed(why)) => Some(why.clone()),
            (Self::Json, Outcome::Exit(0) | Outcome::Done) => {
                Some(json!({"metadata": {}, "status": "Success"}).to_string())
            }
            (Self::Json, Outcome::Exit(code)) => Some(
                json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": nonzero(code),
                    "reason": "NonZeroExitCode",
                    "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
                })
                .to_string(),
            ),
            (Self::Json, Outcome::Failed(why)) => Some(
                json!({
                    "metadata": {},
                    "status": "Failure",
                    "message": format!("Internal error occurred: {why}"),
                    "reason": "InternalError",
                    "details": {"causes": [{"message": why}]},
                    "code": 500,
                })
                .to_string(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn exit_codes_are_told_as_clients_read_them() {
        assert_eq!(Format::of("v4.channel.k8s.io"), Format::Json);
        assert_eq!(Format::of("v4.base64.channel.k8s.io"), Format::Json);
        assert_eq!(Format::of("channel.k8s.io"), Format::Text);
        let read = |outcome| -> Value {
            serde_json::from_str(&Format::Json.text(&outcome).unwrap()).unwrap()
        };
        assert_eq!(read(Outcome::Exit(0))["status"], "Success");
        let failed = read(Outcome::Exit(137));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "137");
        let broken = read(Outcome::Failed("no such file".into()));
        assert_eq!(
            (&broken["reason"], &broken["code"]),
            (&"InternalError".into(), &500.into())
        );
        assert_eq!(Format::Text.text(&Outcome::Exit(0)), None);
        assert!(
            Format::Text
                .text(&Outcome::Exit(3))
                .unwrap()
                .ends_with("code: 3")
        );
    }
}
