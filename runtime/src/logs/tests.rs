//! The log against a reader that joins lines as the kubelet does, and against a daemon that dies
//! at any byte.

use std::io::Write as _;

use bulkhead_proto::agent::Stream;
use proptest::prelude::*;

use super::*;

/// What a kubelet's reader makes of a log: the bytes of both streams.
fn read(log: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").expect("every line ends");
        let parsed = parse_line(line).expect("every line parses");
        let to = match parsed.stream {
            Stream::Stdout => &mut stdout,
            Stream::Stderr => &mut stderr,
        };
        to.extend_from_slice(parsed.content);
        if parsed.full {
            to.push(b'\n');
        }
    }
    (stdout, stderr)
}

/// Bytes with many newlines, and now and then a very long line.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..60),
        1 => (CONTENT_LIMIT - 2..CONTENT_LIMIT + 3).prop_map(|n| vec![b'x'; n]),
        1 => Just(vec![b'y'; 3 * CONTENT_LIMIT + 7]),
        1 => (CONTENT_LIMIT - 1..CONTENT_LIMIT + 2).prop_map(|n| {
            let mut line = vec![b'z'; n];
            line.push(b'\n');
            line
        }),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// Cuts at arbitrary places; returns the pieces with their streams.
fn chunked(stdout: &[u8], stderr: &[u8], cuts: &[u16]) -> Vec<(Stream, Vec<u8>)> {
    let mut left = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    let mut result = Vec::new();
    let mut cut = cuts.iter().cycle();
    while left.iter().any(|(_, data)| !data.is_empty()) {
        let step = usize::from(*cut.next().unwrap());
        let (stream, data) = &mut left[step % 2];
        if data.is_empty() {
            let other = 1 - step % 2;
            let (stream, data) = &mut left[other];
            result.push((*stream, data.to_vec()));
            *data = &[];
            continue;
        }
        let (head, tail) = data.split_at((step / 2 + 1).min(data.len()));
        result.push((*stream, head.to_vec()));
        *data = tail;
    }
    result
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_chunks_come_back(
        stdout in bytes(),
        stderr in bytes(),
        cuts in prop::collection::vec(any::<u16>(), 1..8),
    ) {
        let mut encoder = Encoder::default();
        for (stream, data) in chunked(&stdout, &stderr, &cuts) {
            encoder.feed(stream, &data, 1);
        }
        encoder.finish(1);
        let (log, offsets) = encoder.take();
        prop_assert_eq!(offsets.stdout, stdout.len() as u64);
        prop_assert_eq!(offsets.stderr, stderr.len() as u64);
        for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            prop_assert!(parse_line(line).unwrap().content.len() <= CONTENT_LIMIT);
        }
        prop_assert_eq!(read(&log), (stdout, stderr));
    }

    #[test]
    fn a_death_at_any_byte_costs_and_doubles_nothing(
        stdout in bytes(),
        stderr in bytes(),
        cuts in prop::collection::vec(any::<u16>(), 1..8),
        death in any::<prop::sample::Index>(),
        checkpoint_at in any::<prop::sample::Index>(),
        rotate in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let at = LogPath::new(dir.path().to_str().unwrap(), "c/0.log").unwrap().unwrap();
        let chunks = chunked(&stdout, &stderr, &cuts);

        // What the whole log would be, and after which chunk it was how long.
        let mut encoder = Encoder::default();
        let (mut whole, mut marks) = (Vec::new(), vec![(0, Offsets::default())]);
        for (stream, data) in &chunks {
            encoder.feed(*stream, data, 1);
            let (lines, offsets) = encoder.take();
            whole.extend_from_slice(&lines);
            marks.push((whole.len(), offsets));
        }

        // The daemon dies with this many bytes in the file and this checkpoint.
        let died = death.index(whole.len() + 1);
        let usable: Vec<_> = marks.iter().filter(|(length, _)| *length <= died).collect();
        let (length, offsets) = *usable[checkpoint_at.index(usable.len())];
        let file = LogFile::open(at.clone()).unwrap();
        std::fs::write(at.path(), &whole[..died]).unwrap();
        let mut checkpoint = file.checkpoint(offsets, false);
        checkpoint.length = length as u64;
        let kept = if rotate {
            let old = dir.path().join("c/0.log.20261123");
            std::fs::rename(at.path(), &old).unwrap();
            old
        } else {
            at.path()
        };

        // The next one resumes from what the log says.
        let (mut file, from) = LogFile::recover(at.clone(), &checkpoint).unwrap();
        let mut encoder = Encoder::new(from);
        encoder.feed(Stream::Stdout, &stdout[usize::try_from(from.stdout).unwrap()..], 2);
        encoder.feed(Stream::Stderr, &stderr[usize::try_from(from.stderr).unwrap()..], 2);
        encoder.finish(2);
        let (lines, end) = encoder.take();
        file.append(&lines).unwrap();
        prop_assert_eq!(end.stdout, stdout.len() as u64);

        let mut log = Vec::new();
        if rotate {
            let old = std::fs::read(kept).unwrap();
            // The torn line stays in the file that was renamed away; no reader takes it for one.
            let whole_lines = old.iter().rposition(|byte| *byte == b'\n').map_or(0, |n| n + 1);
            log.extend_from_slice(&old[..whole_lines]);
        }
        log.extend_from_slice(&std::fs::read(at.path()).unwrap());
        prop_assert_eq!(read(&log), (stdout, stderr));
    }
}

#[test]
fn a_line_looks_as_the_kubelet_wants_it() {
    let mut encoder = Encoder::default();
    encoder.feed(Stream::Stdout, b"hel", 1_795_435_200_000_000_005);
    encoder.feed(Stream::Stderr, b"oops\n", 1_795_435_200_000_000_006);
    encoder.feed(Stream::Stdout, b"lo\n\nend", 1_795_435_200_000_000_007);
    encoder.finish(1_795_435_200_000_000_008);
    let (log, _) = encoder.take();
    assert_eq!(
        String::from_utf8(log).unwrap(),
        "2026-11-23T12:00:00.000000006Z stderr F oops\n\
         2026-11-23T12:00:00.000000007Z stdout F hello\n\
         2026-11-23T12:00:00.000000007Z stdout F \n\
         2026-11-23T12:00:00.000000008Z stdout P end\n"
    );
}

#[test]
fn a_long_line_is_cut_at_sixteen_kib_and_an_exactly_full_one_is_whole() {
    let tags = |length: usize| {
        let mut encoder = Encoder::default();
        let mut line = vec![b'a'; length];
        line.push(b'\n');
        encoder.feed(Stream::Stdout, &line, 1);
        let (log, _) = encoder.take();
        let lines = log.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| parse_line(line).unwrap().full)
            .collect::<Vec<_>>()
    };
    assert_eq!(tags(CONTENT_LIMIT), [true]);
    assert_eq!(tags(CONTENT_LIMIT + 1), [false, true]);
    assert_eq!(tags(3 * CONTENT_LIMIT), [false, false, true]);
}

#[test]
fn many_small_pieces_without_a_newline_are_not_held_back_for_ever() {
    // The agent keeps at most some thousand unacknowledged pieces.
    let mut encoder = Encoder::default();
    for _ in 0..2000 {
        encoder.feed(Stream::Stdout, b".", 1);
    }
    assert!(encoder.written().stdout > 0);
}

#[test]
fn lines_of_others_count_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .read(true)
        .open(&path)
        .unwrap();
    file.write_all(b"rubbish\n2026 stdout F four\n2026 stdout X no\n2026 stderr P:x ab\n")
        .unwrap();
    file.write_all(&vec![b'j'; 100_000]).unwrap();
    file.write_all(b"\n2026 stdout F torn").unwrap();
    let tail = recover::read_tail(&mut file, &Checkpoint::default()).unwrap();
    assert_eq!(
        tail.offsets,
        Offsets {
            stdout: 5,
            stderr: 2
        }
    );
    assert_eq!(
        tail.length,
        file.metadata().unwrap().len() - "2026 stdout F torn".len() as u64
    );
}

#[test]
fn hostile_paths_and_links_are_refused() {
    for (directory, path) in [
        ("/logs", "../x"),
        ("/logs", "/x"),
        ("/logs", "a/../../x"),
        ("logs", "x"),
        ("/logs", "a/"),
        ("/logs", "."),
        ("/logs", "a\0b"),
    ] {
        assert!(
            LogPath::new(directory, path).is_err(),
            "{directory} {path:?}"
        );
    }
    assert!(LogPath::new("", "x").unwrap().is_none());
    assert!(LogPath::new("/logs", "").unwrap().is_none());

    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("logs");
    std::fs::create_dir(&root).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("link")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("victim"), root.join("file")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let open =
        |path: &str| LogFile::open(LogPath::new(root.to_str().unwrap(), path).unwrap().unwrap());
    assert!(open("link/x").is_err(), "a link on the way");
    assert!(open("file").is_err(), "a link at the end");
    assert!(matches!(open("fifo"), Err(LogError::NotAFile { .. })));
    assert!(!dir.path().join("victim").exists());
    open("new/deep/0.log").unwrap();
    let mode =
        std::os::unix::fs::MetadataExt::mode(&root.join("new/deep/0.log").metadata().unwrap());
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn after_a_rename_the_path_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let at = LogPath::new(dir.path().to_str().unwrap(), "0.log")
        .unwrap()
        .unwrap();
    let mut file = LogFile::open(at.clone()).unwrap();
    file.append(b"1 stdout F a\n").unwrap();
    assert!(!file.reopen().unwrap());
    std::fs::rename(at.path(), dir.path().join("0.log.1")).unwrap();
    assert!(file.reopen().unwrap());
    file.append(b"2 stdout F b\n").unwrap();
    assert_eq!(std::fs::read(at.path()).unwrap(), b"2 stdout F b\n");
}

#[test]
fn checkpoints_replace_each_other_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = Checkpoints::new(dir.path().join("checkpoints"));
    assert_eq!(store.load("c").unwrap(), None);
    let mut checkpoint = Checkpoint {
        inode: 1,
        length: 2,
        ..Default::default()
    };
    store.store("c", &checkpoint).unwrap();
    checkpoint.ended = true;
    store.store("c", &checkpoint).unwrap();
    assert_eq!(store.load("c").unwrap(), Some(checkpoint));
    assert_eq!(store.list().unwrap(), ["c"]);
    store.remove("c").unwrap();
    store.remove("c").unwrap();
    assert!(store.list().unwrap().is_empty());
}
