//! Status: whether pods can run here and have a network, and what the handlers can do.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use bulkhead_proto::cri as v1;
use serde_json::json;

use crate::{app::App, checks, error::chain};

/// CRI Status.
pub async fn status(
    app: Arc<App>,
    request: v1::StatusRequest,
) -> Result<v1::StatusResponse, Infallible> {
    let config = app.config.clone();
    let lacking = tokio::task::spawn_blocking(move || checks::lacking(&config))
        .await
        .unwrap_or_else(|e| vec![e.to_string()]);
    let runtime = match lacking.as_slice() {
        [] => condition("RuntimeReady", None),
        lacking => condition("RuntimeReady", Some(("HostLacks", lacking.join("; ")))),
    };
    let network = match app.network.ready().await {
        Ok(()) => condition("NetworkReady", None),
        Err(e) => condition("NetworkReady", Some(("NetworkNotReady", chain(&e)))),
    };
    let mut info = HashMap::new();
    if request.verbose {
        let text = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "podCidr": app.pod_cidr(),
            "pods": app.pods.all().len(),
            "sandboxes": app.records.sandboxes.len(),
            "containers": app.records.containers.len(),
        });
        info.insert("info".to_owned(), text.to_string());
        // Where the file systems of containers come from.
        let paths = json!({ "stateDir": app.config.paths.images() });
        info.insert("config".to_owned(), paths.to_string());
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus {
            conditions: vec![runtime, network],
        }),
        info,
        runtime_handlers: app.config.handlers().into_iter().map(handler).collect(),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: false,
        }),
    })
}

fn handler(name: &str) -> v1::RuntimeHandler {
    v1::RuntimeHandler {
        name: name.to_owned(),
        features: Some(v1::RuntimeHandlerFeatures {
            // On the host by mount_setattr, in a guest as the share's mounts are on the host.
            recursive_read_only_mounts: true,
            user_namespaces: true,
        }),
    }
}

fn condition(kind: &str, problem: Option<(&str, String)>) -> v1::RuntimeCondition {
    let status = problem.is_none();
    let (reason, message) = problem.unwrap_or_default();
    v1::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    }
}
