//! `bulkhead import FILE`: the images of an archive become images of this node.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use bulkhead_common::lock;
use bulkhead_proto::archives::{ImportRequest, ImportedImage};
use bytes::BytesMut;
use clap::Args;
use futures::Stream;
use tokio::{fs::File, io::AsyncReadExt as _};

use super::{
    client::{ClientError, Daemon, block_on, failed},
    output::fail,
};
use crate::config::Config;

/// Bytes in one message.
const CHUNK: usize = 256 << 10;

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// An archive as `docker save` makes it, or of an OCI layout; gzip or zstd may be around it.
    /// "-" is the standard input
    file: PathBuf,
    /// Call the archive's image this, whatever it is called there; for archives of one image
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Runs it.
pub fn run(args: Import) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    match block_on(import(args, &config)) {
        Ok(images) => {
            let mut out = io::stdout().lock();
            for image in images {
                let _ = writeln!(out, "{}", line(&image));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// The id, and what it is called.
fn line(image: &ImportedImage) -> String {
    let mut line = image.id.clone();
    for tag in &image.repo_tags {
        line.push(' ');
        line.push_str(tag);
    }
    line
}

async fn import(args: Import, config: &Config) -> Result<Vec<ImportedImage>, ImportError> {
    let path = if args.file.as_os_str() == "-" {
        PathBuf::from("/dev/stdin")
    } else {
        args.file
    };
    let unreadable = |source| ImportError::Read {
        path: path.clone(),
        source,
    };
    let file = File::open(&path).await.map_err(unreadable)?;
    let daemon = Daemon::connect(&config.paths.socket).await?;
    let broken = Arc::new(Mutex::new(None));
    let messages = messages(file, args.name.unwrap_or_default(), Arc::clone(&broken));
    let answer = daemon.archives().import(messages).await;
    // The daemon knows only that the archive broke off.
    if let Some(source) = lock(&broken).take() {
        return Err(unreadable(source));
    }
    let answer = answer.map_err(failed("import the archive"))?;
    Ok(answer.into_inner().images)
}

/// The file as messages. Should it not be readable to its end, the last message does not come.
fn messages(
    file: File,
    name: String,
    broken: Arc<Mutex<Option<io::Error>>>,
) -> impl Stream<Item = ImportRequest> {
    futures::stream::unfold(Some((file, name)), move |state| {
        let broken = Arc::clone(&broken);
        async move {
            let (mut file, name) = state?;
            let mut chunk = BytesMut::with_capacity(CHUNK);
            match file.read_buf(&mut chunk).await {
                Ok(read) => {
                    let last = read == 0;
                    let message = ImportRequest {
                        name,
                        chunk: chunk.freeze(),
                        last,
                    };
                    let next = (!last).then_some((file, String::new()));
                    Some((message, next))
                }
                Err(error) => {
                    *lock(&broken) = Some(error);
                    None
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_file_as_messages() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        let content: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(&path, &content).unwrap();
        let file = File::open(&path).await.unwrap();
        let all: Vec<_> = messages(file, "a:b".to_owned(), Arc::default())
            .collect()
            .await;
        assert_eq!(all[0].name, "a:b");
        assert!(all[1..].iter().all(|message| message.name.is_empty()));
        let (last, rest) = all.split_last().unwrap();
        assert!(last.last && rest.iter().all(|message| !message.last));
        let bytes: Vec<u8> = all
            .iter()
            .flat_map(|message| message.chunk.to_vec())
            .collect();
        assert_eq!(bytes, content);

        // A directory opens and cannot be read.
        let broken = Arc::new(Mutex::new(None));
        let file = File::open(dir.path()).await.unwrap();
        let all: Vec<_> = messages(file, String::new(), Arc::clone(&broken))
            .collect()
            .await;
        assert!(all.is_empty() && lock(&broken).is_some());
    }

    #[test]
    fn what_is_printed() {
        let image = ImportedImage {
            id: "sha256:1".to_owned(),
            repo_tags: vec!["r.example/a:1".to_owned(), "r.example/a:2".to_owned()],
        };
        assert_eq!(line(&image), "sha256:1 r.example/a:1 r.example/a:2");
    }
}
