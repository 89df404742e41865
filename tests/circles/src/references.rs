//! What a module names: every path in its code, its imports among them.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{
    Attribute, Block, ImplItem, Item, ItemUse, Macro, Meta, Path, Stmt, TraitItem, Visibility,
};

use crate::tree::{self, Import, Module};

/// A path that a module names.
#[derive(Debug)]
pub(crate) struct Reference {
    pub(crate) path: Vec<String>,
    /// The imports of the blocks around it, the innermost first.
    pub(crate) local: Vec<Import>,
    /// Whether it is the name of a macro that is called.
    pub(crate) is_macro: bool,
}

/// All that `module` names but what it only passes on.
pub(crate) fn of(module: &Module) -> Vec<Reference> {
    let mut visitor = Visitor {
        blocks: Vec::new(),
        found: Vec::new(),
    };
    for item in &module.items {
        visitor.visit_item(item);
    }
    visitor.found
}

struct Visitor {
    blocks: Vec<Vec<Import>>,
    found: Vec<Reference>,
}

impl Visitor {
    fn add(&mut self, path: Vec<String>, is_macro: bool) {
        let local = self.blocks.iter().rev().flatten().cloned().collect();
        self.found.push(Reference {
            path,
            local,
            is_macro,
        });
    }

    /// Takes what looks like a path in the tokens of a macro's call or of an attribute. There, names
    /// alone are the attribute's own words.
    fn tokens(&mut self, tokens: TokenStream, of_attribute: bool) {
        let mut path: Vec<String> = Vec::new();
        // How many colons, how many dots and whether a quote came just before.
        let (mut colons, mut dots, mut quote) = (0, 0, false);
        let end = |this: &mut Self, path: &mut Vec<String>, called: bool| {
            let path = std::mem::take(path);
            if path.len() > 1 || (path.len() == 1 && !of_attribute) {
                this.add(path, called);
            }
        };
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        end(self, &mut path, false);
                    }
                    // Not a field, a method or a lifetime; after `..` it is a path again.
                    let is_member = dots == 1 || quote;
                    if !path.is_empty() || !is_member {
                        path.push(tree::plain(&ident));
                    }
                    (colons, dots, quote) = (0, 0, false);
                }
                TokenTree::Punct(punct) => match punct.as_char() {
                    ':' => colons += 1,
                    sign => {
                        end(self, &mut path, sign == '!');
                        colons = 0;
                        dots = if sign == '.' { dots + 1 } else { 0 };
                        quote = sign == '\'';
                    }
                },
                TokenTree::Group(group) => {
                    end(self, &mut path, false);
                    (colons, dots, quote) = (0, 0, false);
                    // `{name}` and `a::{b, c}` alike: the names in it are looked up by themselves.
                    let inner = group.stream();
                    debug_assert!(group.delimiter() != Delimiter::None || !inner.is_empty());
                    self.tokens(inner, of_attribute);
                }
                TokenTree::Literal(literal) => {
                    end(self, &mut path, false);
                    (colons, dots, quote) = (0, 0, false);
                    if of_attribute
                        && let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string())
                        && let Ok(path) = text.parse::<Path>()
                        && path.segments.len() > 1
                    {
                        self.visit_path(&path);
                    }
                }
            }
        }
        end(self, &mut path, false);
    }
}

impl<'ast> Visit<'ast> for Visitor {
    fn visit_item(&mut self, item: &'ast Item) {
        if !tree::attributes(item).is_some_and(tree::only_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if !tree::only_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes = match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if !tree::only_for_tests(attributes) {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let exported = !matches!(item.vis, Visibility::Inherited);
        for import in tree::imports(&item.tree, exported) {
            // `pub use` and `use module::*` only open a way; who goes it is charged.
            if !exported && import.name.is_some() || import.path.len() > 1 && import.name.is_none()
            {
                self.add(import.path, false);
            }
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let imports = block.stmts.iter().filter_map(|statement| match statement {
            Stmt::Item(Item::Use(item)) => Some(tree::imports(&item.tree, false)),
            _ => None,
        });
        self.blocks.push(imports.flatten().collect());
        visit::visit_block(self, block);
        self.blocks.pop();
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let names = path
            .segments
            .iter()
            .map(|segment| tree::plain(&segment.ident))
            .collect();
        // `::name` is another crate's.
        if path.leading_colon.is_none() {
            self.add(names, false);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        let names = call
            .path
            .segments
            .iter()
            .map(|segment| tree::plain(&segment.ident))
            .collect();
        self.add(names, true);
        self.tokens(call.tokens.clone(), false);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta
            && !attribute.path().is_ident("cfg")
        {
            self.tokens(list.tokens.clone(), true);
        }
    }

    // `pub(in crate::module)` imports nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}
