//! The rules by which names are found and charged, on small trees of files.

use std::path::Path;

use crate::graph::Graph;
use crate::tree::{Crate, Error};

fn read(files: &[(&str, &str)]) -> Result<Crate, Error> {
    let text = |path: &Path| {
        files
            .iter()
            .find(|(file, _)| Path::new(file) == path)
            .map(|(_, text)| (*text).to_owned())
    };
    Crate::read(Path::new("lib.rs"), &text)
}

fn graph(files: &[(&str, &str)]) -> Graph {
    Graph::of(&read(files).unwrap())
}

/// The imports of `a.rs` beside `b.rs`, which defines `Name` and `function`.
fn imports_of_a(text: &str) -> Vec<String> {
    let b = "pub struct Name; pub fn function() {} pub enum Kind { One }";
    graph(&[("lib.rs", "mod a; mod b;"), ("a.rs", text), ("b.rs", b)]).of_file("a.rs")
}

#[test]
fn a_use_and_a_path_are_imports_however_they_begin() {
    for text in [
        "use crate::b::Name;",
        "use super::b::Name;",
        "use crate::{b::{Name as Other}};",
        "fn f(_: crate::b::Name) {}",
        "type T = Vec<super::b::Name>;",
        "use crate::b; fn f(_: b::Name) {}",
        "use super::b as other; fn f(_: other::Name) {}",
        "use crate::b::{self}; impl From<b::Name> for u8 {}",
        "use super::*; fn f(_: b::Name) {}",
        "use super::b::*; fn f(_: Name) {}",
        "fn f() { use crate::b::Name; }",
        "fn f() { use super::b; let _ = b::Name; }",
        "fn f() { use super::b::*; let _ = Name; }",
        "mod inner { fn f(_: super::super::b::Name) {} }",
        "mod inner { use self::super::super::b::Name; }",
        "fn f() { println!(\"{}\", crate::b::Name); }",
        "use crate::b; fn f() { let _ = vec![0, size(b::Name)]; }",
        "use super::b; fn f() { foreign!(..b::Name); }",
        "#[serde(with = \"crate::b::Name\")] struct S;",
        "#[derive(crate::b::Name)] struct S;",
        "use self::super::b::Name;",
    ] {
        assert_eq!(imports_of_a(text), ["Name of b.rs"], "{text}");
    }
}

#[test]
fn what_follows_an_item_belongs_to_it() {
    for text in [
        "use crate::b::Kind::One;",
        "use crate::b::Kind::*;",
        "fn f() { crate::b::Kind::One; }",
        "use crate::b; fn f() { b::Kind::default(); }",
    ] {
        assert_eq!(imports_of_a(text), ["Kind of b.rs"], "{text}");
    }
}

#[test]
fn what_names_nothing_of_another_file_is_no_import() {
    for text in [
        "mod own { pub struct Name; } use own::Name; use self::own::Name as Other;",
        "use crate::b;",
        "use super::*; struct Name; fn f(_: Name) {}",
        "use std::path::Path; use b_of_another_crate::Name; use ::b::Name;",
        "pub(in crate::b) struct S;",
        "fn f<Name>(name: Name) -> Name { name }",
        "use super::b::*; fn f(s: S) { s.function(); foreign!(s.function, &'function s); }",
        "/// [`crate::b::Name`]\nstruct S;",
        "use crate::b; fn f() { let b = 1; g(b); println!(\"{b}\"); }",
        "#[cfg(test)] use crate::b::Name;",
        "#[cfg(test)] fn f(_: crate::b::Name) {}",
        "impl S { #[cfg(any(test, fuzzing))] fn f(_: crate::b::Name) {} }",
        "trait T { #[cfg(all(test, unix))] fn f(_: crate::b::Name); }",
        "#[cfg(test)] mod tests { use super::super::b::Name; }",
    ] {
        assert_eq!(imports_of_a(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn conditions_that_may_hold_without_tests_leave_nothing_out() {
    for condition in [
        "unix",
        "not(test)",
        "any(test, unix)",
        "not(all(test, unix))",
        "feature = \"x\"",
    ] {
        let text = format!("#[cfg({condition})] use crate::b::Name;");
        assert_eq!(imports_of_a(&text), ["Name of b.rs"], "{condition}");
    }
}

#[test]
fn a_name_is_charged_to_the_file_that_defines_it() {
    let files = [
        (
            "lib.rs",
            "mod user; mod facade; pub use facade::Third as Fourth;",
        ),
        (
            "facade/mod.rs",
            "mod one; mod two; pub use one::First; pub use self::two::*; use two::Third;",
        ),
        ("facade/one.rs", "pub struct First;"),
        ("facade/two.rs", "pub struct Second; pub struct Third;"),
        (
            "user.rs",
            "use crate::facade::{First, Second}; fn f(_: crate::Fourth) {}",
        ),
    ];
    let graph = graph(&files);
    assert_eq!(
        graph.of_file("user.rs"),
        [
            "First of facade/one.rs",
            "Second of facade/two.rs",
            "Third of facade/two.rs"
        ]
    );
    // Its own private import counts; what it only passes on does not.
    assert_eq!(graph.of_file("facade/mod.rs"), ["Third of facade/two.rs"]);
    assert_eq!(graph.of_file("lib.rs"), Vec::<String>::new());
}

#[test]
fn a_name_passed_on_and_used_is_an_import() {
    let files = [
        ("lib.rs", "mod a; pub use a::Name; pub fn f(_: Name) {}"),
        ("a.rs", "pub struct Name;"),
    ];
    assert_eq!(graph(&files).of_file("lib.rs"), ["Name of a.rs"]);
}

#[test]
fn a_module_and_a_function_of_one_name_are_told_apart() {
    let files = [
        ("lib.rs", "mod run; mod user; pub use run::run;"),
        ("run.rs", "pub fn run() {} pub struct Options;"),
        (
            "user.rs",
            "use crate::run; fn f(_: run::Options) { run(); }",
        ),
    ];
    assert_eq!(
        graph(&files).of_file("user.rs"),
        ["Options of run.rs", "run of run.rs"]
    );
}

#[test]
fn what_another_crate_defines_ties_nothing() {
    let files = [
        ("lib.rs", "mod a; pub use contract::Exit; pub use other::*;"),
        (
            "a.rs",
            "use crate::Exit; use crate::Unknown; fn f(_: super::Exit) {}",
        ),
    ];
    assert_eq!(graph(&files).of_file("a.rs"), Vec::<String>::new());
}

#[test]
fn names_that_macros_define_are_their_module_s() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::Flags;"),
        ("b.rs", "bitflags! { struct Flags: u8 {} }"),
    ];
    assert_eq!(graph(&files).of_file("a.rs"), ["Flags of b.rs"]);
}

#[test]
fn macros_are_found_by_text_by_export_and_by_path() {
    let files = [
        ("lib.rs", "#[macro_use] mod macros; mod a; mod b; mod c;"),
        (
            "macros.rs",
            "macro_rules! near { () => {} } #[macro_export] macro_rules! far { () => {} } pub(crate) use near;",
        ),
        ("a.rs", "near!();"),
        ("b.rs", "fn f() { crate::far!(); }"),
        (
            "c.rs",
            "use crate::macros::near; fn f() { outer!(near!()); }",
        ),
    ];
    let graph = graph(&files);
    assert_eq!(graph.of_file("a.rs"), ["near of macros.rs"]);
    assert_eq!(graph.of_file("b.rs"), ["far of macros.rs"]);
    assert_eq!(graph.of_file("c.rs"), ["near of macros.rs"]);
}

#[test]
fn imports_that_name_each_other_end() {
    let files = [
        ("lib.rs", "mod a; mod b; use a::*;"),
        (
            "a.rs",
            "pub use crate::b::*; pub use crate::b::Ring; fn f(_: Ring, _: Nowhere) {}",
        ),
        ("b.rs", "pub use crate::a::*; pub use crate::a::Ring;"),
    ];
    assert!(graph(&files).circles().is_empty());
}

#[test]
fn files_are_found_where_the_compiler_finds_them() {
    let files = [
        (
            "lib.rs",
            "mod a; mod b; mod inline { mod deep; #[path = \"odd.rs\"] mod c; } #[path = \"x/../y.rs\"] mod z;",
        ),
        ("a.rs", "mod child; #[path = \"named.rs\"] mod other;"),
        ("a/child.rs", "use super::super::b::B;"),
        ("named.rs", "mod below; use crate::b::B;"),
        ("below.rs", "use crate::b::B;"),
        ("b/mod.rs", "mod child; pub struct B;"),
        ("b/child.rs", "use super::B;"),
        ("inline/deep.rs", "use crate::b::B;"),
        ("inline/odd.rs", "use crate::b::B;"),
        ("y.rs", "use crate::b::B;"),
    ];
    let graph = graph(&files);
    for file in [
        "a/child.rs",
        "named.rs",
        "below.rs",
        "b/child.rs",
        "inline/deep.rs",
        "inline/odd.rs",
        "y.rs",
    ] {
        assert_eq!(graph.of_file(file), ["B of b/mod.rs"], "{file}");
    }
}

#[test]
fn a_file_that_is_missing_or_no_rust_is_an_error() {
    assert!(matches!(
        read(&[("lib.rs", "mod a;")]),
        Err(Error::NoFile(_))
    ));
    assert!(matches!(read(&[]), Err(Error::NoFile(_))));
    let error = read(&[("lib.rs", "mod a;"), ("a.rs", "fn (")]).err();
    assert!(matches!(error, Some(Error::Syntax { path, .. }) if *path == *"a.rs"));
    assert!(read(&[("lib.rs", "#[cfg(test)] mod tests;")]).is_ok());
}

#[test]
fn parent_and_child_that_import_from_each_other_are_a_circle() {
    let both = [
        ("lib.rs", "mod a; use a::A; pub struct P;"),
        ("a.rs", "use super::P; pub struct A;"),
    ];
    let circles = graph(&both).circles();
    assert_eq!(
        circles.iter().map(ToString::to_string).collect::<String>(),
        "circle of 2 files:\n  a.rs\n      P of lib.rs\n  lib.rs\n      A of a.rs\n"
    );
    for one_way in [
        [
            ("lib.rs", "mod a; pub struct P;"),
            ("a.rs", "use super::P; pub struct A;"),
        ],
        [("lib.rs", "mod a; use a::A;"), ("a.rs", "pub struct A;")],
        [
            ("lib.rs", "mod a; pub use a::A; pub struct P;"),
            ("a.rs", "use super::P; pub struct A;"),
        ],
        [
            ("lib.rs", "mod a; use a::A; pub struct P;"),
            (
                "a.rs",
                "pub struct A; #[cfg(test)] mod tests { use super::super::P; }",
            ),
        ],
        // Within one file names may go round.
        [
            (
                "lib.rs",
                "mod a; mod b { use super::P; pub struct B; } use b::B; struct P;",
            ),
            ("a.rs", ""),
        ],
    ] {
        assert!(graph(&one_way).circles().is_empty(), "{one_way:?}");
    }
}

#[test]
fn circles_that_share_a_file_are_one_and_others_are_apart() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e; mod user;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::{a::A, c::C}; pub struct B;"),
        ("c.rs", "use crate::b::B; pub struct C;"),
        ("d.rs", "use crate::e::E; pub struct D;"),
        ("e.rs", "pub struct E; pub fn f() -> crate::d::D {}"),
        ("user.rs", "use crate::a::A; use crate::d::D;"),
    ];
    let circles: Vec<String> = graph(&files)
        .circles()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(circles.len(), 2, "{circles:?}");
    assert!(
        circles
            .first()
            .unwrap()
            .starts_with("circle of 3 files:\n  a.rs\n")
    );
    assert!(
        circles
            .last()
            .unwrap()
            .starts_with("circle of 2 files:\n  d.rs\n")
    );
    assert!(circles.iter().all(|circle| !circle.contains("user.rs")));
}
