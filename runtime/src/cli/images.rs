//! `bulkhead images`: the images of this node, as a table or as JSON.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use bulkhead_proto::cri;
use clap::Args;
use serde_json::json;

use super::{
    client::{ClientError, Daemon, block_on, failed},
    output::{bytes, fail},
};
use crate::config::Config;

/// Arguments of `images`.
#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: ImagesArgs) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    match block_on(list(&config)) {
        Ok(images) => {
            let text = if args.json {
                as_json(&images)
            } else {
                as_table(&images)
            };
            let _ = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

async fn list(config: &Config) -> Result<Vec<cri::Image>, ClientError> {
    let daemon = Daemon::connect(&config.paths.socket).await?;
    let request = cri::ListImagesRequest::default();
    let answer = daemon.images().list_images(request).await;
    let mut images = answer
        .map_err(failed("list the images"))?
        .into_inner()
        .images;
    images.sort_by(|a, b| a.repo_tags.cmp(&b.repo_tags).then(a.id.cmp(&b.id)));
    Ok(images)
}

fn as_json(images: &[cri::Image]) -> String {
    let images: Vec<_> = images
        .iter()
        .map(|image| {
            json!({
                "id": image.id,
                "repoTags": image.repo_tags,
                "repoDigests": image.repo_digests,
                "size": image.size,
                "uid": image.uid.as_ref().map(|uid| uid.value),
                "username": image.username,
            })
        })
        .collect();
    format!("{:#}\n", json!({ "images": images }))
}

fn as_table(images: &[cri::Image]) -> String {
    let mut rows = vec![["IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned()]];
    for image in images {
        let id: String = image
            .id
            .trim_start_matches("sha256:")
            .chars()
            .take(13)
            .collect();
        // An image whose tags have moved on is known by its digest.
        let names = if image.repo_tags.is_empty() {
            &image.repo_digests
        } else {
            &image.repo_tags
        };
        for name in names {
            rows.push([name.clone(), id.clone(), bytes(image.size)]);
        }
    }
    let width = |column: fn(&[String; 3]) -> &String| {
        rows.iter()
            .map(|row| column(row).len())
            .max()
            .unwrap_or_default()
    };
    let (first, second) = (width(|row| &row[0]), width(|row| &row[1]));
    rows.iter()
        .map(|[name, id, size]| format!("{name:first$}  {id:second$}  {size:>9}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> cri::Image {
        cri::Image {
            id: format!("sha256:{}", "a".repeat(64)),
            repo_tags: vec!["r.example/a:1".to_owned(), "r.example/a:22".to_owned()],
            size: 1_500_000,
            ..cri::Image::default()
        }
    }

    #[test]
    fn a_row_per_name() {
        let text = as_table(&[image()]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2], "r.example/a:22  aaaaaaaaaaaaa     1.5 MB");
        assert!(lines.iter().all(|line| line.len() == lines[2].len()));
    }

    #[test]
    fn json_has_all_names() {
        let value: serde_json::Value = serde_json::from_str(&as_json(&[image()])).unwrap();
        assert_eq!(value["images"][0]["repoTags"][1], "r.example/a:22");
        assert_eq!(value["images"][0]["uid"], serde_json::Value::Null);
    }
}
