//! Which file of a crate imports what from which other, and where that comes round again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::names::Meaning;
use crate::references;
use crate::tree::Crate;

/// For each file the files it imports from, and the names.
type Imports = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

/// The imports between the files of one crate.
#[derive(Debug)]
pub(crate) struct Graph {
    imports: Imports,
}

/// Files each of which imports, by way of the others, from itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Circle {
    imports: Imports,
}

impl Graph {
    /// Follows every path that the crate's modules name.
    pub(crate) fn of(source: &Crate) -> Self {
        let mut imports = Imports::new();
        for (id, module) in source.modules.iter().enumerate() {
            let from = imports.entry(module.file.clone()).or_default();
            for reference in references::of(module) {
                let mut meanings = source.meanings(id, &reference.local, &reference.path);
                // A macro is called without a path after its text, wherever that is.
                if let ([name], true) = (reference.path.as_slice(), reference.is_macro)
                    && let Some(file) = source.macros.get(name)
                {
                    meanings = vec![Meaning::Item(file.clone(), name.clone())];
                }
                for meaning in meanings {
                    if let Meaning::Item(file, name) = meaning
                        && file != module.file
                    {
                        from.entry(file).or_default().insert(name);
                    }
                }
            }
        }
        Self { imports }
    }

    /// What `file` imports, as `NAME of FILE`.
    #[cfg(test)]
    pub(crate) fn of_file(&self, file: &str) -> Vec<String> {
        let imports = self.imports.get(Path::new(file));
        let lines = imports.into_iter().flatten().flat_map(|(from, names)| {
            names
                .iter()
                .map(move |name| format!("{name} of {}", from.display()))
        });
        lines.collect()
    }

    /// The circles, each as large as it is: two that share a file are one.
    pub(crate) fn circles(&self) -> Vec<Circle> {
        let reached: BTreeMap<&Path, BTreeSet<&Path>> = self
            .imports
            .keys()
            .map(|file| (file.as_path(), self.reached(file)))
            .collect();
        let reach = |from: &Path, to: &Path| reached.get(from).is_some_and(|set| set.contains(to));
        let mut circles = Vec::new();
        let mut done = BTreeSet::new();
        for file in self.imports.keys().filter(|file| reach(file, file)) {
            if done.contains(file) {
                continue;
            }
            let members: BTreeSet<&PathBuf> = self
                .imports
                .keys()
                .filter(|other| reach(file, other) && reach(other, file))
                .collect();
            done.extend(members.iter().copied());
            let mut imports = Imports::new();
            for member in &members {
                let mut inside = self.imports.get(*member).cloned().unwrap_or_default();
                inside.retain(|from, _| members.contains(from));
                imports.insert((*member).clone(), inside);
            }
            circles.push(Circle { imports });
        }
        circles
    }

    /// The files that `file` imports from, and those that they do.
    fn reached(&self, file: &Path) -> BTreeSet<&Path> {
        let mut reached = BTreeSet::new();
        let mut open = vec![file];
        while let Some(next) = open.pop() {
            for from in self
                .imports
                .get(next)
                .into_iter()
                .flatten()
                .map(|(from, _)| from)
            {
                if reached.insert(from.as_path()) {
                    open.push(from);
                }
            }
        }
        reached
    }
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "circle of {} files:", self.imports.len())?;
        for (file, imports) in &self.imports {
            writeln!(f, "  {}", file.display())?;
            for (from, names) in imports {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                writeln!(f, "      {} of {}", names.join(", "), from.display())?;
            }
        }
        Ok(())
    }
}
