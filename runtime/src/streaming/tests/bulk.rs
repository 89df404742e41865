//! A gigabyte in each direction, byte for byte.

use super::{Node, limit};
use bulkhead_streaming::spdy::client::{Command, Message, follow};

/// Blocks begin with their number, so that a lost, doubled or moved one is seen.
pub(super) const BLOCK: usize = 64 * 1024;
/// A gigabyte.
const BLOCKS: u64 = 16 * 1024;

pub(super) fn block(number: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = pattern().to_vec();
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn pattern() -> &'static [u8] {
    static PATTERN: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    PATTERN.get_or_init(|| {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(BLOCK).collect()
    })
}

/// Holds what comes against what must come.
#[derive(Default)]
pub(super) struct Check {
    waiting: Vec<u8>,
    blocks: u64,
}

impl Check {
    pub(super) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            let now = (BLOCK - self.waiting.len()).min(data.len());
            self.waiting.extend_from_slice(&data[..now]);
            data = &data[now..];
            if self.waiting.len() == BLOCK {
                assert_eq!(self.waiting[..8], self.blocks.to_be_bytes());
                assert!(self.waiting[8..] == pattern()[8..], "block {}", self.blocks);
                self.waiting.clear();
                self.blocks += 1;
            }
        }
    }

    /// How many came; the last must be whole.
    pub(super) fn blocks(&self) -> u64 {
        assert!(
            self.waiting.is_empty(),
            "{} bytes too many",
            self.waiting.len()
        );
        self.blocks
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gigabyte_out_and_a_gigabyte_in_are_byte_exact() {
    let node = Node::start().await;
    limit(async {
        let url = node.exec(&["source", &BLOCKS.to_string()], false);
        let mut out = Command::start(&url, &["stdout", "stderr"]).await.unwrap();
        let mut check = Check::default();
        let streams = [out.stdout, out.stderr, Some(out.error)];
        let mut status = Vec::new();
        follow(&mut out.reader, streams, &mut |said| match said {
            Message::Stdout(data) => check.feed(&data),
            Message::Stderr(data) => assert!(data.is_empty()),
            Message::Status(data) => status.extend_from_slice(&data),
        })
        .await
        .unwrap();
        assert_eq!(check.blocks(), BLOCKS);
        assert!(String::from_utf8(status).unwrap().contains("Success"));
        drop(out);

        let url = node.exec(&["sink"], true);
        let mut into = Command::start(&url, &["stdin", "stdout", "stderr"])
            .await
            .unwrap();
        let stdin = into.stdin.unwrap();
        for number in 0..BLOCKS {
            let last = number + 1 == BLOCKS;
            into.writer.send(stdin, &block(number), last).await.unwrap();
        }
        let ended = into.collect().await.unwrap();
        assert_eq!(ended.stdout, BLOCKS.to_string().as_bytes());
        drop(into);
        node.end().await;
    })
    .await;
}
