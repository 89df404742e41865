//! The lists as streams (KEP-5825): the same items as the list of the same name gives, in messages
//! that stay small however many there are.

use std::{convert::Infallible, sync::Arc};

use bulkhead_images::ImagesError;
use bulkhead_proto::cri as v1;
use prost::Message;

use super::{image_list, server::Answers};
use crate::{
    app::App,
    container::{self, ContainerError},
    sandbox, stats,
};

/// A message takes items up to this size; one item that is larger goes alone.
const CHUNK: usize = 1 << 20;

/// CRI StreamPodSandboxes.
pub async fn stream_pod_sandboxes(
    app: Arc<App>,
    request: v1::StreamPodSandboxesRequest,
) -> Result<Answers<v1::StreamPodSandboxesResponse>, Infallible> {
    let items = sandbox::list(&app, request.filter.as_ref());
    Ok(answer(items, |pod_sandboxes| {
        v1::StreamPodSandboxesResponse { pod_sandboxes }
    }))
}

/// CRI StreamContainers.
pub async fn stream_containers(
    app: Arc<App>,
    request: v1::StreamContainersRequest,
) -> Result<Answers<v1::StreamContainersResponse>, ContainerError> {
    let items = container::list(&app, request.filter.as_ref())?;
    Ok(answer(items, |containers| v1::StreamContainersResponse {
        containers,
    }))
}

/// CRI StreamContainerStats.
pub async fn stream_container_stats(
    app: Arc<App>,
    request: v1::StreamContainerStatsRequest,
) -> Result<Answers<v1::StreamContainerStatsResponse>, Infallible> {
    let items = container::list_stats(&app, request.filter.as_ref()).await;
    Ok(answer(items, |container_stats| {
        v1::StreamContainerStatsResponse { container_stats }
    }))
}

/// CRI StreamPodSandboxStats.
pub async fn stream_pod_sandbox_stats(
    app: Arc<App>,
    request: v1::StreamPodSandboxStatsRequest,
) -> Result<Answers<v1::StreamPodSandboxStatsResponse>, Infallible> {
    let items = stats::list_pods(&app, request.filter.as_ref()).await;
    Ok(answer(items, |pod_sandbox_stats| {
        v1::StreamPodSandboxStatsResponse { pod_sandbox_stats }
    }))
}

/// CRI StreamPodSandboxMetrics.
pub async fn stream_pod_sandbox_metrics(
    app: Arc<App>,
    _request: v1::StreamPodSandboxMetricsRequest,
) -> Result<Answers<v1::StreamPodSandboxMetricsResponse>, Infallible> {
    let items = stats::list_metrics(&app).await;
    Ok(answer(items, |pod_sandbox_metrics| {
        v1::StreamPodSandboxMetricsResponse {
            pod_sandbox_metrics,
        }
    }))
}

/// CRI StreamImages.
pub async fn stream_images(
    app: Arc<App>,
    request: v1::StreamImagesRequest,
) -> Result<Answers<v1::StreamImagesResponse>, ImagesError> {
    let list = v1::ListImagesRequest {
        filter: request.filter,
    };
    let items = image_list::list_images(app, list).await?.images;
    Ok(answer(items, |images| v1::StreamImagesResponse { images }))
}

/// Nothing to list is a stream without a message.
fn answer<T, R>(items: Vec<T>, response: fn(Vec<T>) -> R) -> Answers<R>
where
    T: Message + 'static,
    R: Send + 'static,
{
    let messages: Vec<R> = chunks(items).into_iter().map(response).collect();
    Box::pin(futures::stream::iter(messages.into_iter().map(Ok)))
}

fn chunks<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut chunks: Vec<Vec<T>> = Vec::new();
    let mut size = CHUNK;
    for item in items {
        let more = item.encoded_len();
        match chunks
            .last_mut()
            .filter(|_| size.saturating_add(more) <= CHUNK)
        {
            Some(chunk) => chunk.push(item),
            None => {
                chunks.push(vec![item]);
                size = 0;
            }
        }
        size = size.saturating_add(more);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_stay_in_order_and_chunks_small() {
        let pod = |size: usize| v1::PodSandbox {
            id: "x".repeat(size),
            ..Default::default()
        };
        assert!(chunks::<v1::PodSandbox>(Vec::new()).is_empty());
        let sizes = [10, CHUNK / 2, CHUNK / 2, 3 * CHUNK, 1, 2];
        let got = chunks(sizes.map(pod).to_vec());
        let shape: Vec<Vec<usize>> = got
            .iter()
            .map(|chunk| chunk.iter().map(|pod| pod.id.len()).collect())
            .collect();
        assert_eq!(
            shape,
            [
                vec![10, CHUNK / 2],
                vec![CHUNK / 2],
                vec![3 * CHUNK],
                vec![1, 2]
            ]
        );
    }
}
