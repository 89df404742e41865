//! Images as files: the daemon's side of `bulkhead import` and `bulkhead export`. What archives are
//! is the images crate's business; here are bytes between it and the wire.

use std::{
    io::{self, Write},
    pin::Pin,
    sync::Arc,
};

use bulkhead_images::{ImagesError, archive::ArchiveError};
use bulkhead_proto::archives::{
    ExportRequest, ExportResponse, ImportRequest, ImportResponse, ImportedImage,
    archives_server::Archives,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{app::App, error::Grpc as _};

/// Bytes of an archive in one message.
const CHUNK: usize = 256 << 10;
/// Messages on their way to a client.
const IN_FLIGHT: usize = 8;

/// Answers the service.
#[derive(Debug, Clone)]
pub struct ArchivesServer {
    app: Arc<App>,
}

impl ArchivesServer {
    /// Over this state.
    pub fn new(app: Arc<App>) -> Self {
        Self { app }
    }
}

/// The client ended the stream and not the archive.
#[derive(Debug, thiserror::Error)]
#[error("its sender ended without saying that it was the end")]
struct NoEnd;

type ChunkError = Box<dyn std::error::Error + Send + Sync>;

#[tonic::async_trait]
impl Archives for ArchivesServer {
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let name = Some(first.name.clone()).filter(|name| !name.is_empty());
        let rest = messages.map_err(ChunkError::from);
        let chunks = chunks(futures::stream::iter([Ok(first)]).chain(rest));
        let images = self.app.images.import(chunks, name.as_deref()).await;
        let images = images.map_err(|error| told("import", &error))?;
        let images = images.iter().map(|image| ImportedImage {
            id: image.id.clone(),
            repo_tags: image.repo_tags.clone(),
        });
        Ok(Response::new(ImportResponse {
            images: images.collect(),
        }))
    }

    type ExportStream = Pin<Box<dyn Stream<Item = Result<ExportResponse, Status>> + Send>>;

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let export = self.app.images.export(&request.into_inner().images);
        let export = export.map_err(|error| told("export", &error))?;
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        // It ends with the archive, or with its client.
        tokio::task::spawn_blocking(move || {
            let mut writer = io::BufWriter::with_capacity(CHUNK, Chunks(sender.clone()));
            if let Err(error) = export.write_to(&mut writer) {
                let _client_gone = sender.blocking_send(Err(told("export", &error)));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// The archive's bytes. The end of the messages is one of the archive only if the last said so.
fn chunks(
    messages: impl Stream<Item = Result<ImportRequest, ChunkError>> + Send,
) -> impl Stream<Item = Result<Bytes, ArchiveError>> + Send {
    let begin = (Box::pin(messages), false);
    futures::stream::try_unfold(begin, |(mut messages, ended)| async move {
        if ended {
            return Ok(None);
        }
        let broken = |source| ArchiveError::Broken { source };
        let message = messages.next().await.unwrap_or_else(|| Err(NoEnd.into()));
        let message = message.map_err(broken)?;
        Ok(Some((message.chunk, (messages, message.last))))
    })
}

/// As a status, and a line in the log.
fn told(what: &'static str, error: &ImagesError) -> Status {
    let status = Status::new(error.code(), crate::error::chain(error));
    tracing::warn!(code = ?status.code(), "{what}: {}", status.message());
    status
}

/// Writes into messages.
struct Chunks(mpsc::Sender<Result<ExportResponse, Status>>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for chunk in bytes.chunks(CHUNK) {
            let response = ExportResponse {
                chunk: Bytes::copy_from_slice(chunk),
            };
            self.0
                .blocking_send(Ok(response))
                .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone"))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(messages: Vec<ImportRequest>) -> Result<Vec<u8>, ArchiveError> {
        let messages = futures::stream::iter(messages.into_iter().map(Ok));
        let chunks: Vec<Bytes> = chunks(messages).try_collect().await?;
        Ok(chunks.concat())
    }

    #[tokio::test]
    async fn an_archive_ends_where_its_sender_says_so() {
        let message = |chunk: &'static str, last| ImportRequest {
            name: String::new(),
            chunk: Bytes::from_static(chunk.as_bytes()),
            last,
        };
        let whole = vec![message("ab", false), message("c", false), message("", true)];
        assert_eq!(received(whole).await.unwrap(), b"abc");
        // What is behind the end is nothing.
        let more = vec![message("a", true), message("b", false)];
        assert_eq!(received(more).await.unwrap(), b"a");
        for cut in [vec![], vec![message("ab", false)]] {
            let error = received(cut).await.unwrap_err();
            assert!(matches!(error, ArchiveError::Broken { .. }), "{error}");
        }
    }
}
