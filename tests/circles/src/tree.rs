//! The modules of one crate as its files have them, without what only tests see. Where a module's file
//! is, is as the Rust reference has it (Items, Modules, "Module source filenames").

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use syn::{Attribute, Expr, Item, Lit, Meta, UseTree, Visibility};

/// Why a crate cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A module's file is missing.
    #[error("no file for {0}")]
    NoFile(String),
    /// A file is not Rust as this compiler's age has it.
    #[error("cannot parse {path}: {source}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: syn::Error,
    },
}

/// A module's place in [`Crate::modules`].
pub(crate) type ModuleId = usize;

/// The modules of one library or program; the first is its root.
#[derive(Default)]
pub(crate) struct Crate {
    pub(crate) modules: Vec<Module>,
    /// Where each `macro_rules!` is, for those who call it without a path.
    pub(crate) macros: HashMap<String, PathBuf>,
}

/// One module and the names that it makes.
pub(crate) struct Module {
    pub(crate) file: PathBuf,
    pub(crate) parent: Option<ModuleId>,
    pub(crate) children: HashMap<String, ModuleId>,
    /// What is defined here, and in which file: elsewhere only for macros that are exported.
    pub(crate) defined: HashMap<String, PathBuf>,
    pub(crate) imports: Vec<Import>,
    /// All but the modules in it.
    pub(crate) items: Vec<Item>,
}

/// One name, or all names of a module, that a `use` brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Import {
    pub(crate) path: Vec<String>,
    /// Its name here; none for `*`.
    pub(crate) name: Option<String>,
    /// Whether it passes the name on: any `pub`.
    pub(crate) exported: bool,
}

impl Crate {
    /// Reads the crate whose root file is `root`; `read` has the text of a file, if it exists.
    pub(crate) fn read(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Self, Error> {
        let mut whole = Self::default();
        let directory = root.parent().unwrap_or(Path::new("")).to_path_buf();
        let text = read(root).ok_or_else(|| Error::NoFile(root.display().to_string()))?;
        let mut reader = Reader {
            whole: &mut whole,
            read,
        };
        reader.file(root, &directory, None, &text)?;
        Ok(whole)
    }
}

struct Reader<'a> {
    whole: &'a mut Crate,
    read: &'a dyn Fn(&Path) -> Option<String>,
}

impl Reader<'_> {
    /// Adds the module that `file` is; its children's files are in `directory`.
    fn file(
        &mut self,
        file: &Path,
        directory: &Path,
        parent: Option<ModuleId>,
        text: &str,
    ) -> Result<ModuleId, Error> {
        let parsed = syn::parse_file(text).map_err(|source| Error::Syntax {
            path: file.to_path_buf(),
            source,
        })?;
        self.module(file, directory, parent, parsed.items, false)
    }

    fn module(
        &mut self,
        file: &Path,
        directory: &Path,
        parent: Option<ModuleId>,
        items: Vec<Item>,
        inline: bool,
    ) -> Result<ModuleId, Error> {
        let id = self.whole.modules.len();
        self.whole.modules.push(Module {
            file: file.to_path_buf(),
            parent,
            children: HashMap::new(),
            defined: HashMap::new(),
            imports: Vec::new(),
            items: Vec::new(),
        });
        for item in items {
            if attributes(&item).is_some_and(only_for_tests) {
                continue;
            }
            if let Item::Mod(declared) = item {
                let name = plain(&declared.ident);
                let child = match declared.content {
                    Some((_, items)) => {
                        self.module(file, &directory.join(&name), Some(id), items, true)?
                    }
                    None => {
                        let path = path_attribute(&declared.attrs);
                        self.child(file, directory, id, &name, path, inline)?
                    }
                };
                self.with(id, |module| module.children.insert(name, child));
                continue;
            }
            self.name(id, file, &item);
            self.with(id, |module| module.items.push(item));
        }
        Ok(id)
    }

    /// Adds the module of `mod name;` in `file`.
    fn child(
        &mut self,
        file: &Path,
        directory: &Path,
        parent: ModuleId,
        name: &str,
        path: Option<String>,
        inline: bool,
    ) -> Result<ModuleId, Error> {
        let candidates = match path {
            // From the directory of the file; in an inline module from where its children would be.
            Some(path) => {
                let from = if inline {
                    directory
                } else {
                    file.parent().unwrap_or(Path::new(""))
                };
                let target = normal(&from.join(path));
                let below = target.parent().unwrap_or(Path::new("")).to_path_buf();
                vec![(target, below)]
            }
            None => vec![
                (directory.join(format!("{name}.rs")), directory.join(name)),
                (directory.join(name).join("mod.rs"), directory.join(name)),
            ],
        };
        for (target, below) in candidates {
            if let Some(text) = (self.read)(&target) {
                return self.file(&target, &below, Some(parent), &text);
            }
        }
        Err(Error::NoFile(format!(
            "`mod {name};` in {}",
            file.display()
        )))
    }

    /// Writes down the names that `item` makes in module `id`.
    fn name(&mut self, id: ModuleId, file: &Path, item: &Item) {
        let ident = match item {
            Item::Const(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Fn(item) => &item.sig.ident,
            Item::Static(item) => &item.ident,
            Item::Struct(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::TraitAlias(item) => &item.ident,
            Item::Type(item) => &item.ident,
            Item::Union(item) => &item.ident,
            Item::Use(item) => {
                let exported = !matches!(item.vis, Visibility::Inherited);
                let imports = imports(&item.tree, exported);
                return self.with(id, |module| module.imports.extend(imports));
            }
            Item::Macro(item) => {
                let Some(ident) = &item.ident else { return };
                self.whole.macros.insert(plain(ident), file.to_path_buf());
                if item
                    .attrs
                    .iter()
                    .any(|attribute| attribute.path().is_ident("macro_export"))
                {
                    self.with(0, |root| {
                        root.defined.insert(plain(ident), file.to_path_buf())
                    });
                }
                ident
            }
            _ => return,
        };
        let name = plain(ident);
        self.with(id, |module| module.defined.insert(name, file.to_path_buf()));
    }

    fn with<T>(&mut self, id: ModuleId, change: impl FnOnce(&mut Module) -> T) {
        if let Some(module) = self.whole.modules.get_mut(id) {
            change(module);
        }
    }
}

/// The imports of a `use`.
pub(crate) fn imports(tree: &UseTree, exported: bool) -> Vec<Import> {
    let mut found = Vec::new();
    collect(tree, &mut Vec::new(), exported, &mut found);
    found
}

fn collect(tree: &UseTree, before: &mut Vec<String>, exported: bool, found: &mut Vec<Import>) {
    let mut add = |last: Option<String>, name: Option<String>| {
        let mut path = before.clone();
        // `{self}` is the module before it.
        path.extend(last.filter(|last| last != "self" || before.is_empty()));
        let name = name.map(|name| {
            if name == "self" {
                path.last().cloned().unwrap_or(name)
            } else {
                name
            }
        });
        found.push(Import {
            path,
            name,
            exported,
        });
    };
    match tree {
        UseTree::Path(tree) => {
            before.push(plain(&tree.ident));
            collect(&tree.tree, before, exported, found);
            before.pop();
        }
        UseTree::Name(tree) => add(Some(plain(&tree.ident)), Some(plain(&tree.ident))),
        UseTree::Rename(tree) => add(Some(plain(&tree.ident)), Some(plain(&tree.rename))),
        UseTree::Glob(_) => add(None, None),
        UseTree::Group(tree) => {
            for tree in &tree.items {
                collect(tree, before, exported, found);
            }
        }
    }
}

/// An identifier without `r#`.
pub(crate) fn plain(ident: &proc_macro2::Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map(str::to_owned).unwrap_or(text)
}

/// The attributes of an item that can be under `#[cfg]`.
pub(crate) fn attributes(item: &Item) -> Option<&[Attribute]> {
    Some(match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => return None,
    })
}

/// Whether `#[cfg]` leaves these out of every build that is neither for tests nor for fuzzing.
pub(crate) fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("cfg"))
        .any(|attribute| {
            attribute
                .parse_args::<Meta>()
                .is_ok_and(|condition| holds(&condition) == Some(false))
        })
}

/// Whether a condition of `#[cfg]` holds when nobody tests; none where it depends on something else.
fn holds(condition: &Meta) -> Option<bool> {
    match condition {
        Meta::Path(path) if path.is_ident("test") || path.is_ident("fuzzing") => Some(false),
        Meta::List(list) => {
            let parts = list
                .parse_args_with(
                    syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated,
                )
                .ok()?;
            let parts: Vec<_> = parts.iter().map(holds).collect();
            if list.path.is_ident("not") {
                parts.first().copied().flatten().map(|held| !held)
            } else {
                // `any` is true by one that is, `all` false by one that is.
                let decides = list.path.is_ident("any");
                if parts.contains(&Some(decides)) {
                    Some(decides)
                } else if parts.contains(&None) {
                    None
                } else {
                    Some(!decides)
                }
            }
        }
        _ => None,
    }
}

/// The value of `#[path = "…"]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                Expr::Lit(literal) => match &literal.lit {
                    Lit::Str(text) => Some(text.value()),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        })
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if normal.file_name().is_some() => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}
