//! Tests of whole conversions: tar in memory, image in memory, read back.

mod builder;
mod formats;
mod hostile;
mod lenient;
mod property;
mod tools;
mod trees;

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};

use super::convert::run as run_with;
use super::recipe::Recorder;
use super::*;
use crate::erofs::read::{File, read_tree};

type Tree = BTreeMap<Vec<u8>, File>;

/// Converts, and reads back: an image that was made must be sound.
fn run_limited(tar: &[u8], limits: &Limits) -> Result<(Tree, LayerInfo), LayerError> {
    let (out, info) = convert_into(tar, Cursor::new(Vec::new()), limits, &mut |_| {})?;
    let image = out.into_inner();
    assert_eq!(info.erofs_size, image.len() as u64);
    assert_eq!(info.bytes, tar.len() as u64);
    assert_eq!(rebuilt(tar, limits), tar, "the tar as it was");
    Ok((read_tree(&image).expect("a sound image"), info))
}

/// The tar that a layer's file gives back.
fn rebuilt(tar: &[u8], limits: &Limits) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let recorder = Recorder::to_file(&std::env::temp_dir()).unwrap();
    let (_, info, recorded) = run_with(tar, &file, limits, &mut |_| {}, recorder).unwrap();
    let (recipe, _) = recorded.append(&file, info.erofs_size).unwrap();
    let mut tar = Vec::new();
    Rebuild::new(file, &recipe)
        .unwrap()
        .read_to_end(&mut tar)
        .unwrap();
    tar
}

fn run(tar: &[u8]) -> Result<(Tree, LayerInfo), LayerError> {
    run_limited(tar, &Limits::default())
}

/// The tree of a layer that must be good.
fn tree(tar: &[u8]) -> Tree {
    run(tar).expect("a good layer").0
}

fn paths(tree: &Tree) -> Vec<String> {
    let all = tree
        .keys()
        .map(|path| String::from_utf8_lossy(path).into_owned());
    all.filter(|path| !path.is_empty()).collect()
}

/// What is wrong with an entry that must be refused.
fn problem(tar: &[u8]) -> EntryProblem {
    match run(tar) {
        Err(LayerError::Entry { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

fn format_problem(tar: &[u8]) -> FormatProblem {
    match run(tar) {
        Err(LayerError::Format { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

fn limit(tar: &[u8], limits: &Limits) -> &'static str {
    match run_limited(tar, limits) {
        Err(LayerError::Limit { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}
