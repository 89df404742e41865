//! What a path stands for: the module or the item behind it, through imports and re-exports. Imports
//! are followed whether or not they are public: a child sees its parent's private ones.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::tree::{Crate, Import, ModuleId};

/// What a name stands for. One name can be several: a module, a type, a function and a macro.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A module of this crate.
    Module(ModuleId),
    /// An item: the file that defines it, and its name there.
    Item(PathBuf, String),
    /// Something of another crate.
    Foreign,
}

/// What was looked up on the way: imports may name each other in a ring.
type Seen = HashSet<(ModuleId, String)>;

impl Crate {
    /// What `path` stands for where module `from` names it. `local` are the imports of the blocks around
    /// the path. None where nothing has its first name: a generic, a variable, the prelude's.
    pub(crate) fn meanings(
        &self,
        from: ModuleId,
        local: &[Import],
        path: &[String],
    ) -> Vec<Meaning> {
        let mut seen = Seen::new();
        if let Some((first, rest)) = path.split_first() {
            for import in local {
                if import.name.as_ref() == Some(first) {
                    let start = self.path(from, &import.path, &mut seen);
                    return self.rest(start, rest, &mut seen);
                }
            }
        }
        let found = self.path(from, path, &mut seen);
        if !found.is_empty() && found != [Meaning::Foreign] {
            return found;
        }
        for import in local.iter().filter(|import| import.name.is_none()) {
            let whole: Vec<String> = import.path.iter().chain(path).cloned().collect();
            let named: Vec<_> = self.path(from, &import.path, &mut seen);
            if named
                .iter()
                .any(|meaning| matches!(meaning, Meaning::Module(_)))
            {
                let found = self.path(from, &whole, &mut seen);
                if found.iter().any(|meaning| self.is_written(meaning)) {
                    return found;
                }
            }
        }
        found
    }

    /// Whether a meaning is an item that stands in the source, not one taken for a macro's.
    fn is_written(&self, meaning: &Meaning) -> bool {
        match meaning {
            Meaning::Item(file, name) => self
                .modules
                .iter()
                .any(|module| module.file == *file && module.defined.contains_key(name)),
            Meaning::Module(_) => true,
            Meaning::Foreign => false,
        }
    }

    fn path(&self, from: ModuleId, path: &[String], seen: &mut Seen) -> Vec<Meaning> {
        let Some((first, rest)) = path.split_first() else {
            return Vec::new();
        };
        let start = match first.as_str() {
            "crate" => vec![Meaning::Module(0)],
            "self" => vec![Meaning::Module(from)],
            "super" => self.parent(from),
            name => {
                let found = self.lookup(from, name, seen);
                // Not in scope: the name of another crate, if more follows.
                if found.is_empty() {
                    vec![Meaning::Foreign]
                } else {
                    found
                }
            }
        };
        self.rest(start, rest, seen)
    }

    fn rest(&self, start: Vec<Meaning>, rest: &[String], seen: &mut Seen) -> Vec<Meaning> {
        let mut current = start;
        for name in rest {
            let modules: Vec<ModuleId> = current
                .iter()
                .filter_map(|meaning| match meaning {
                    Meaning::Module(id) => Some(*id),
                    _ => None,
                })
                .collect();
            if modules.is_empty() {
                // A variant or an associated item: it belongs to the item before it.
                return current;
            }
            let mut next = Vec::new();
            for id in &modules {
                match name.as_str() {
                    "super" => next.extend(self.parent(*id)),
                    "self" => next.push(Meaning::Module(*id)),
                    name => next.extend(self.lookup(*id, name, seen)),
                }
            }
            if next.is_empty() {
                let items: Vec<Meaning> = current
                    .into_iter()
                    .filter(|meaning| !matches!(meaning, Meaning::Module(_)))
                    .collect();
                if !items.is_empty() {
                    return items;
                }
                // No item that can be read: a macro's, unless another crate may have it.
                return modules
                    .into_iter()
                    .filter_map(|id| self.modules.get(id))
                    .map(|module| Meaning::Item(module.file.clone(), name.clone()))
                    .collect();
            }
            current = next;
        }
        current
    }

    fn parent(&self, of: ModuleId) -> Vec<Meaning> {
        let parent = self.modules.get(of).and_then(|module| module.parent);
        parent.map(Meaning::Module).into_iter().collect()
    }

    /// What `name` is in the module: defined, imported, or found through its globs.
    fn lookup(&self, id: ModuleId, name: &str, seen: &mut Seen) -> Vec<Meaning> {
        let Some(module) = self.modules.get(id) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        found.extend(
            module
                .children
                .get(name)
                .map(|child| Meaning::Module(*child)),
        );
        if let Some(file) = module.defined.get(name) {
            found.push(Meaning::Item(file.clone(), name.to_owned()));
        }
        // Looked up by an import of this very name, which names something else: `use name::name`.
        if !seen.insert((id, name.to_owned())) {
            return found;
        }
        for import in module
            .imports
            .iter()
            .filter(|import| import.name.as_deref() == Some(name))
        {
            found.extend(self.path(id, &import.path, seen));
        }
        if found.is_empty() {
            let mut foreign = false;
            for import in module.imports.iter().filter(|import| import.name.is_none()) {
                for meaning in self.path(id, &import.path, seen) {
                    match meaning {
                        Meaning::Module(from) => found.extend(self.lookup(from, name, seen)),
                        // The variants of an enum cannot be told from other names; whoever
                        // imports them is tied to the enum by the import.
                        Meaning::Item(..) => {}
                        Meaning::Foreign => foreign = true,
                    }
                }
            }
            if found.is_empty() && foreign {
                found.push(Meaning::Foreign);
            }
        }
        seen.remove(&(id, name.to_owned()));
        found
    }
}
