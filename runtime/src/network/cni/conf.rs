//! The network configuration: the first file, in the order of names, of the CNI directory, as a list of
//! plugins (CNI spec 1.1, "Network configuration format"). Reading and checking only; running is `exec`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::versions;
use crate::{listing::file_names, network::NetworkError};

/// A larger file is refused.
const MAX_BYTES: u64 = 1 << 20;
/// More plugins are refused.
const MAX_PLUGINS: usize = 64;

/// A network: its name and the plugins that make it, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConf {
    /// The file it came from.
    pub path: PathBuf,
    /// `name`.
    pub name: String,
    /// The newest of `cniVersion` and `cniVersions` that is understood here.
    pub version: String,
    /// `disableCheck`: CHECK is not to be run.
    pub disable_check: bool,
    /// `disableGC`: GC is not to be run, for others add to the network as well.
    pub disable_gc: bool,
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

/// Loads the first `.conflist`, `.conf` or `.json` of a directory, sorted by name. Plugins in the
/// subdirectory named after the network are appended, unless the list sets `loadOnlyInlinedPlugins`.
/// Blocks.
///
/// # Errors
/// If there is none, or the first is not usable (a later one is never taken in its place: the
/// operator would not know which network the pods are in).
pub fn load(dir: &Path) -> Result<NetworkConf, NetworkError> {
    let first = files(dir, &["conflist", "conf", "json"])?
        .into_iter()
        .next();
    let path = first.ok_or_else(|| NetworkError::NoConfig {
        dir: dir.to_owned(),
    })?;
    let (mut conf, rest) = read_list(&path, &read(&path)?)?;
    if rest == Rest::InDirectory {
        for file in files(&dir.join(&conf.name), &["conf"])? {
            let object = object(&file, &read(&file)?)?;
            conf.plugins.push(plugin(&file, object)?);
        }
    }
    check_number(&conf)?;
    Ok(conf)
}

/// The files with one of these endings, by name; none if there is no such directory.
fn files(dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, NetworkError> {
    let unreadable = |source| NetworkError::ReadConfig {
        path: dir.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for name in file_names(dir).map_err(unreadable)? {
        let path = dir.join(name);
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending.is_some_and(|ending| endings.contains(&ending)) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, NetworkError> {
    let unreadable = |source| NetworkError::ReadConfig {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
        return Err(bad(path, format!("larger than {MAX_BYTES} bytes")));
    }
    fs::read(path).map_err(unreadable)
}

fn bad(path: &Path, what: impl Into<String>) -> NetworkError {
    NetworkError::BadConfig {
        path: path.to_owned(),
        what: what.into(),
    }
}

/// Whether a file is the whole of its network.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    None,
    /// There may be more plugins, in files of their own.
    InDirectory,
}

/// Checks the text of a configuration file that is the whole of its network: a list of plugins, or
/// one plugin alone.
///
/// # Errors
/// Says which key is wrong and what is allowed.
pub fn parse(path: &Path, text: &[u8]) -> Result<NetworkConf, NetworkError> {
    let (conf, _) = read_list(path, text)?;
    check_number(&conf)?;
    Ok(conf)
}

fn check_number(conf: &NetworkConf) -> Result<(), NetworkError> {
    match conf.plugins.len() {
        0 => Err(bad(
            &conf.path,
            format!(
                "it has no plugins: key \"plugins\" is missing or empty, and there are none in {}",
                conf.path.with_file_name(&conf.name).display()
            ),
        )),
        1..=MAX_PLUGINS => Ok(()),
        more => Err(bad(
            &conf.path,
            format!("{more} plugins; at most {MAX_PLUGINS} are allowed"),
        )),
    }
}

fn object(path: &Path, text: &[u8]) -> Result<Map<String, Value>, NetworkError> {
    serde_json::from_slice(text).map_err(|error| bad(path, format!("not a JSON object: {error}")))
}

/// A string; none where Go reads an empty value.
fn text_of<'a>(
    path: &Path,
    object: &'a Map<String, Value>,
    key: &str,
) -> Result<Option<&'a str>, NetworkError> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Null) | None => Ok(None),
        Some(other) => Err(bad(
            path,
            format!("key {key:?} must be a string, not {other}"),
        )),
    }
}

/// A boolean, which may be written as text.
fn flag(path: &Path, object: &Map<String, Value>, key: &str) -> Result<bool, NetworkError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(bad(
            path,
            format!("key {key:?} must be true or false, not {other}"),
        )),
    }
}

/// A name that becomes part of paths.
fn plain(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn plugin(path: &Path, object: Map<String, Value>) -> Result<PluginConf, NetworkError> {
    let kind = text_of(path, &object, "type")?
        .ok_or_else(|| bad(path, "key \"type\" is missing"))?
        .to_owned();
    if !plain(&kind) {
        return Err(bad(
            path,
            format!("type {kind:?} must be the name of a program"),
        ));
    }
    Ok(PluginConf { kind, object })
}

/// The version to be spoken: the newest that both sides know.
fn version(path: &Path, top: &Map<String, Value>) -> Result<&'static str, NetworkError> {
    let single = text_of(path, top, "cniVersion")?;
    let list = match top.get("cniVersions") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) => list
            .iter()
            .map(Value::as_str)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| bad(path, "key \"cniVersions\" must hold strings"))?,
        Some(_) => return Err(bad(path, "key \"cniVersions\" must be a list")),
    };
    let offered: Vec<&str> = single.into_iter().chain(list).collect();
    versions::choose(offered.iter().copied()).ok_or_else(|| {
        bad(
            path,
            format!(
                "none of its versions {offered:?} (cniVersion, cniVersions) is one of {:?}",
                versions::KNOWN
            ),
        )
    })
}

fn read_list(path: &Path, text: &[u8]) -> Result<(NetworkConf, Rest), NetworkError> {
    let top = object(path, text)?;
    let name = text_of(path, &top, "name")?.ok_or_else(|| bad(path, "key \"name\" is missing"))?;
    if !plain(name) {
        return Err(bad(
            path,
            format!("name {name:?} must be letters, digits and any of _.-"),
        ));
    }
    let mut conf = NetworkConf {
        path: path.to_owned(),
        name: name.to_owned(),
        version: version(path, &top)?.to_owned(),
        disable_check: flag(path, &top, "disableCheck")?,
        disable_gc: flag(path, &top, "disableGC")?,
        plugins: Vec::new(),
    };
    let inlined_only = flag(path, &top, "loadOnlyInlinedPlugins")?;
    let list: &[Value] = match top.get("plugins") {
        // One plugin alone, which is its own list.
        None if top.contains_key("type") => {
            conf.plugins.push(plugin(path, top)?);
            return Ok((conf, Rest::None));
        }
        None | Some(Value::Null) if inlined_only => {
            return Err(bad(
                path,
                "\"loadOnlyInlinedPlugins\" is true, and there is no key \"plugins\"",
            ));
        }
        None | Some(Value::Null) => &[],
        Some(Value::Array(list)) => list,
        Some(_) => return Err(bad(path, "key \"plugins\" must be a list")),
    };
    for object in list {
        let object = object.as_object().cloned();
        let object = object.ok_or_else(|| bad(path, "key \"plugins\" must hold objects"))?;
        conf.plugins.push(plugin(path, object)?);
    }
    let rest = match inlined_only {
        true => Rest::None,
        false => Rest::InDirectory,
    };
    Ok((conf, rest))
}

#[cfg(test)]
#[path = "conf_tests.rs"]
mod tests;
