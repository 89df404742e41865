//! The network configuration: the first file, in the order of names, of the CNI directory, as a list of plugins
//! (CNI spec 1.1, "Network configuration format"). Reading and checking only; running is `exec`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::network::NetworkError;

/// The versions of the specification whose results are understood here.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// A larger file is refused.
const MAX_BYTES: u64 = 1 << 20;

/// A network: its name and the plugins that make it, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConf {
    /// The file it came from.
    pub path: PathBuf,
    /// `name`.
    pub name: String,
    /// `cniVersion`.
    pub version: String,
    /// In the order of ADD.
    pub plugins: Vec<PluginConf>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// `type`: the program's name.
    pub kind: String,
    /// The whole object, as it stands in the file.
    pub object: Map<String, Value>,
}

impl PluginConf {
    /// Whether the plugin takes a capability argument (CNI conventions, "runtimeConfig").
    #[must_use]
    pub fn has_capability(&self, name: &str) -> bool {
        self.object
            .get("capabilities")
            .and_then(|all| all.get(name))
            == Some(&Value::Bool(true))
    }
}

/// Loads the first `.conflist`, `.conf` or `.json` of a directory, sorted by name. Blocks.
///
/// # Errors
/// If there is none, or the first is not usable (a later one is never taken in its place: the
/// operator would not know which network the pods are in).
pub fn load(dir: &Path) -> Result<NetworkConf, NetworkError> {
    let unreadable = |source| NetworkError::ReadConfig {
        path: dir.to_owned(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NetworkError::NoConfig {
                dir: dir.to_owned(),
            });
        }
        entries => entries.map_err(unreadable)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let kind = path.extension().and_then(|ending| ending.to_str());
        if matches!(kind, Some("conflist" | "conf" | "json")) {
            files.push(path);
        }
    }
    let first = files.into_iter().min();
    let path = first.ok_or_else(|| NetworkError::NoConfig {
        dir: dir.to_owned(),
    })?;
    let unreadable = |source| NetworkError::ReadConfig {
        path: path.clone(),
        source,
    };
    if fs::metadata(&path).map_err(unreadable)?.len() > MAX_BYTES {
        return Err(bad(&path, format!("larger than {MAX_BYTES} bytes")));
    }
    let text = fs::read(&path).map_err(unreadable)?;
    parse(&path, &text)
}

fn bad(path: &Path, what: impl Into<String>) -> NetworkError {
    NetworkError::BadConfig {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// Checks the text of a configuration file: a list of plugins, or one plugin alone.
///
/// # Errors
/// Says which key is wrong and what is allowed.
pub fn parse(path: &Path, text: &[u8]) -> Result<NetworkConf, NetworkError> {
    let top: Map<String, Value> = serde_json::from_slice(text)
        .map_err(|error| bad(path, format!("not a JSON object: {error}")))?;
    let text_of = |object: &Map<String, Value>, key: &str| -> Result<String, NetworkError> {
        match object.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(bad(
                path,
                format!("key {key:?} must be a string, not {other}"),
            )),
            None => Err(bad(path, format!("key {key:?} is missing"))),
        }
    };
    let name = text_of(&top, "name")?;
    let plain = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    if !plain(&name) {
        return Err(bad(
            path,
            format!("name {name:?} must be letters, digits and any of _.-"),
        ));
    }
    let version = text_of(&top, "cniVersion")?;
    if !VERSIONS.contains(&version.as_str()) {
        return Err(bad(
            path,
            format!("cniVersion {version:?} is not one of {VERSIONS:?}"),
        ));
    }
    let objects = match top.get("plugins") {
        None => vec![top.clone()],
        Some(Value::Array(list)) => list
            .iter()
            .map(|plugin| plugin.as_object().cloned())
            .collect::<Option<_>>()
            .ok_or_else(|| bad(path, "key \"plugins\" must hold objects"))?,
        Some(_) => return Err(bad(path, "key \"plugins\" must be a list")),
    };
    let plugins = objects
        .into_iter()
        .map(|object| {
            let kind = text_of(&object, "type")?;
            if !plain(&kind) {
                return Err(bad(
                    path,
                    format!("type {kind:?} must be the name of a program"),
                ));
            }
            Ok(PluginConf { kind, object })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if plugins.is_empty() {
        return Err(bad(path, "key \"plugins\" is empty"));
    }
    Ok(NetworkConf {
        path: path.to_owned(),
        name,
        version,
        plugins,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: &NetworkError) -> String {
        error.to_string()
    }

    #[test]
    fn a_list_and_a_single_plugin_are_networks() {
        let list = br#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},
            {"type":"portmap","capabilities":{"portMappings":true,"snat":false}}]}"#;
        let conf = parse(Path::new("a.conflist"), list).unwrap();
        assert_eq!((conf.name.as_str(), conf.plugins.len()), ("pods", 2));
        assert!(conf.plugins[1].has_capability("portMappings"));
        assert!(!conf.plugins[1].has_capability("snat"));
        let one = parse(
            Path::new("b.conf"),
            br#"{"cniVersion":"0.4.0","name":"n","type":"ptp"}"#,
        );
        assert_eq!(one.unwrap().plugins[0].kind, "ptp");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (given, expected) in [
            (r"[]", "not a JSON object"),
            (
                r#"{"cniVersion":"1.0.0","plugins":[]}"#,
                "\"name\" is missing",
            ),
            (r#"{"cniVersion":"1.0.0","name":7}"#, "must be a string"),
            (
                r#"{"cniVersion":"1.0.0","name":"../x","type":"a"}"#,
                "letters, digits",
            ),
            (r#"{"cniVersion":"9.0.0","name":"x","type":"a"}"#, "1.1.0"),
            (r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#, "empty"),
            (
                r#"{"cniVersion":"1.0.0","name":"x","plugins":[1]}"#,
                "objects",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"x","type":"../../bin/sh"}"#,
                "name of a program",
            ),
        ] {
            let error = text(&parse(Path::new("f.conflist"), given.as_bytes()).unwrap_err());
            assert!(
                error.contains(expected) && error.contains("f.conflist"),
                "{given}: {error}"
            );
        }
    }

    #[test]
    fn the_first_file_by_name_counts_even_if_it_is_bad() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            load(dir.path()),
            Err(NetworkError::NoConfig { .. })
        ));
        assert!(matches!(
            load(&dir.path().join("none")),
            Err(NetworkError::NoConfig { .. })
        ));
        fs::write(dir.path().join("README"), "x").unwrap();
        assert!(matches!(
            load(dir.path()),
            Err(NetworkError::NoConfig { .. })
        ));
        fs::write(
            dir.path().join("20-b.conf"),
            r#"{"cniVersion":"1.0.0","name":"second","type":"ptp"}"#,
        )
        .unwrap();
        assert_eq!(load(dir.path()).unwrap().name, "second");
        fs::write(dir.path().join("10-a.conflist"), "{").unwrap();
        assert!(matches!(
            load(dir.path()),
            Err(NetworkError::BadConfig { .. })
        ));
    }
}
