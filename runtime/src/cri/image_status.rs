//! ImageStatus.

use std::{collections::HashMap, sync::Arc};

use bulkhead_images::{ImageRecord, ImagesError, serial};
use bulkhead_proto::cri as v1;
use serde_json::json;

use crate::app::App;

/// CRI ImageStatus. An image that is not on the node gives an empty answer, not an error.
/// Verbose, it also reports a pull of the image that is under way: `bulkhead pull` shows its
/// progress from that.
pub async fn image_status(
    app: Arc<App>,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, ImagesError> {
    let reference = request.image.unwrap_or_default().image;
    let found = app.images.find(&reference)?;
    let mut info = HashMap::new();
    if request.verbose {
        if let Some(image) = &found {
            info.insert("info".to_owned(), details(image));
        }
        if let Some(layers) = app.images.progress(&reference) {
            info.insert("pull".to_owned(), json!({ "layers": layers }).to_string());
        }
    }
    Ok(v1::ImageStatusResponse {
        image: found.map(|image| to_cri(&app, &image)),
        info,
    })
}

/// An image as CRI shows it.
pub(super) fn to_cri(app: &App, image: &ImageRecord) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: None,
        pinned: {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            app.config.images.pinned.has(names)
        },
    }
}

/// CRI Image.uid and Image.username from the configuration's `User`, whose group does not matter:
/// a number is a uid, else it is a name; neither when nothing is said (the kubelet's
/// runAsNonRoot check takes that for root).
fn user(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<u32>() {
        Ok(uid) => (Some(i64::from(uid)), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// What is not in CRI's message but of use to people.
fn details(image: &ImageRecord) -> String {
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            json!({
                "digest": layer.digest, "diffID": layer.diff_id, "size": layer.blob_size,
                "fileSize": layer.file_size, "serial": serial(layer),
            })
        })
        .collect();
    let config = &image.config;
    json!({
        "layers": layers,
        "pulledAt": image.pulled_at,
        "imageSpec": { "config": {
            "User": config.user, "Env": config.env, "Entrypoint": config.entrypoint,
            "Cmd": config.cmd, "WorkingDir": config.working_dir, "Labels": config.labels,
            "StopSignal": config.stop_signal, "Volumes": config.volumes,
        }},
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        for (given, uid, name) in [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("1003:1004", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:1004", None, "www-data"),
            ("0", Some(0), ""),
            ("-1", None, "-1"),
            ("99999999999", None, "99999999999"),
        ] {
            assert_eq!(user(given), (uid, name.to_owned()), "{given}");
        }
    }
}
