//! The streaming RPCs' answers: their one type, and lists cut into messages.

use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

/// What a streaming RPC answers with.
pub(super) type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A message takes items up to this size; one item that is larger goes alone.
const CHUNK: usize = 1 << 20;

/// The items of a list in messages that stay small however many there are (KEP-5825). An empty
/// list is a stream without a message.
pub(super) fn chunked<T, R>(items: Vec<T>, response: fn(Vec<T>) -> R) -> ResponseStream<R>
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
    use bulkhead_proto::cri as v1;

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
