//! GetContainerEvents.

use std::sync::Arc;

use bulkhead_proto::cri as v1;

use super::response::ResponseStream;
use crate::{app::App, error::Grpc as _, events::EventsError};

/// CRI GetContainerEvents: from now on, until the client leaves, falls behind or the daemon ends.
pub async fn get_container_events(
    app: Arc<App>,
    _request: v1::GetEventsRequest,
) -> Result<ResponseStream<v1::ContainerEventResponse>, EventsError> {
    let subscriber = app.events.subscribe()?;
    let events = futures::stream::unfold(Some(subscriber), |subscriber| async move {
        let mut subscriber = subscriber?;
        match subscriber.next().await {
            Ok(event) => Some((Ok(event), Some(subscriber))),
            Err(error) => Some((Err(error.status()), None)),
        }
    });
    Ok(Box::pin(events))
}
