//! ListMetricDescriptors.

use std::{convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;

use crate::{app::App, stats};

/// CRI ListMetricDescriptors.
pub async fn list_metric_descriptors(
    _app: Arc<App>,
    _request: v1::ListMetricDescriptorsRequest,
) -> Result<v1::ListMetricDescriptorsResponse, Infallible> {
    Ok(v1::ListMetricDescriptorsResponse {
        descriptors: stats::descriptors(),
    })
}
