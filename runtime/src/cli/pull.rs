//! `bulkhead pull IMAGE`: the daemon pulls, this command shows how far it is. The progress comes
//! from the verbose ImageStatus of the daemon, asked a few times a second while the pull runs.

use std::{
    collections::HashMap,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use bulkhead_images::pull::{LayerSnapshot, LayerState};
use bulkhead_proto::cri;
use clap::Args;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    client::{ClientError, Daemon, block_on, failed},
    output::{bytes, fail},
};
use crate::config::Config;

/// How often the progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// With more layers than this only their sum is drawn: terminals have 24 lines and more.
const MOST_LINES: usize = 16;
/// Width of a bar.
const BAR: usize = 24;
/// Longest password line read.
const LONGEST_PASSWORD: u64 = 16 << 10;

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// The image: [registry/]repository[:tag][@digest]
    image: String,
    /// Pull as this user; what is visible to other users of this machine, so see also
    /// --password-stdin
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    /// Read the password for the user in --creds from standard input
    #[arg(long, requires = "creds")]
    password_stdin: bool,
    /// Show no progress, print the image's id only
    #[arg(short, long)]
    quiet: bool,
    /// Read this configuration file [default: /etc/bulkhead/config.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum PullError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("--creds must be USER:PASSWORD, or USER with --password-stdin")]
    Creds,
    #[error("cannot read the password from standard input")]
    Stdin(#[source] io::Error),
}

/// Runs it.
pub fn run(args: Pull) -> ExitCode {
    let config = match Config::load(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    match block_on(pull(&args, &config)) {
        Ok(id) => {
            let _ = writeln!(io::stdout(), "{id}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

async fn pull(args: &Pull, config: &Config) -> Result<String, PullError> {
    let auth = auth(args)?;
    let daemon = Daemon::connect(&config.paths.socket).await?;
    let image = cri::ImageSpec {
        image: args.image.clone(),
        ..cri::ImageSpec::default()
    };
    let request = cri::PullImageRequest {
        image: Some(image.clone()),
        auth,
        sandbox_config: None,
    };
    let mut images = daemon.images();
    let call = images.pull_image(request);
    tokio::pin!(call);
    let mut display = Display::new(args.quiet);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ctrl-C ends this process, the call with it, and the pull if nobody else waits for it.
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer.map_err(failed("pull the image"))?,
            _ = ticks.tick(), if !args.quiet => {
                // Progress that cannot be read does not fail the pull.
                if let Some(layers) = progress(&daemon, &image).await
                    && !layers.is_empty()
                {
                    display.show(&layers);
                }
            }
        }
    };
    display.end();
    Ok(answer.into_inner().image_ref)
}

fn auth(args: &Pull) -> Result<Option<cri::AuthConfig>, PullError> {
    let Some(creds) = &args.creds else {
        return Ok(None);
    };
    let (username, password) = if args.password_stdin {
        let mut password = String::new();
        io::stdin()
            .take(LONGEST_PASSWORD)
            .read_to_string(&mut password)
            .map_err(PullError::Stdin)?;
        (
            creds.clone(),
            password.trim_end_matches(['\r', '\n']).to_owned(),
        )
    } else {
        let (user, password) = creds.split_once(':').ok_or(PullError::Creds)?;
        (user.to_owned(), password.to_owned())
    };
    Ok(Some(cri::AuthConfig {
        username,
        password,
        ..cri::AuthConfig::default()
    }))
}

#[derive(Deserialize)]
struct Progress {
    layers: Vec<LayerSnapshot>,
}

async fn progress(daemon: &Daemon, image: &cri::ImageSpec) -> Option<Vec<LayerSnapshot>> {
    let request = cri::ImageStatusRequest {
        image: Some(image.clone()),
        verbose: true,
    };
    let answer = daemon.images().image_status(request).await.ok()?;
    let text = answer.into_inner().info.remove("pull")?;
    Some(serde_json::from_str::<Progress>(&text).ok()?.layers)
}

/// Draws on standard error: bars on a terminal, else a line when a layer gets further.
struct Display {
    quiet: bool,
    terminal: bool,
    begun: Instant,
    lines: usize,
    states: HashMap<String, LayerState>,
    last: Vec<LayerSnapshot>,
}

impl Display {
    fn new(quiet: bool) -> Self {
        Self {
            quiet,
            terminal: io::stderr().is_terminal(),
            begun: Instant::now(),
            lines: 0,
            states: HashMap::new(),
            last: Vec::new(),
        }
    }

    fn show(&mut self, layers: &[LayerSnapshot]) {
        let mut text = String::new();
        if self.terminal {
            if self.lines > 0 {
                // Up to where the last drawing began; each line is cleared as it is drawn.
                text += &format!("\x1b[{}A", self.lines);
            }
            let picture = self.picture(layers);
            for line in &picture {
                text += &format!("\r\x1b[2K{line}\n");
            }
            self.lines = picture.len();
        } else {
            for layer in layers {
                let known = self.states.insert(layer.digest.clone(), layer.state);
                if known != Some(layer.state) && layer.state != LayerState::Waiting {
                    text += &format!("{}\n", line(layer));
                }
            }
        }
        self.last = layers.to_vec();
        let _ = io::stderr().write_all(text.as_bytes());
    }

    fn picture(&self, layers: &[LayerSnapshot]) -> Vec<String> {
        let done = layers.iter().filter(|layer| is_done(layer)).count();
        let (fetched, size) = sum(layers);
        let mut picture = Vec::new();
        if layers.len() <= MOST_LINES {
            picture.extend(layers.iter().map(line));
        }
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let rate = fetched as f64 / seconds / 1e6;
        picture.push(format!(
            "{done}/{} layers  {}  {} of {}  {rate:.1} MB/s",
            layers.len(),
            bar(fetched, size),
            bytes(fetched),
            bytes(size),
        ));
        picture
    }

    fn end(&mut self) {
        if self.quiet {
            return;
        }
        // The pull may have ended between two looks: what was drawn last is not the end.
        let mut layers = std::mem::take(&mut self.last);
        for layer in &mut layers {
            if !is_done(layer) {
                layer.fetched = layer.size;
                layer.state = LayerState::Done;
            }
        }
        if !layers.is_empty() {
            self.show(&layers);
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        let _ = writeln!(io::stderr(), "pulled in {seconds:.1} s");
    }
}

fn is_done(layer: &LayerSnapshot) -> bool {
    matches!(layer.state, LayerState::Present | LayerState::Done)
}

/// Bytes fetched and to be fetched: what is present already is not.
fn sum(layers: &[LayerSnapshot]) -> (u64, u64) {
    layers
        .iter()
        .filter(|layer| layer.state != LayerState::Present)
        .fold((0, 0), |(fetched, size), layer| {
            (fetched + layer.fetched.min(layer.size), size + layer.size)
        })
}

fn line(layer: &LayerSnapshot) -> String {
    let id: String = layer
        .digest
        .chars()
        .skip_while(|&c| c != ':')
        .skip(1)
        .take(12)
        .collect();
    match layer.state {
        LayerState::Waiting => format!("{id}  waiting   {}", bytes(layer.size)),
        LayerState::Present => format!("{id}  here already"),
        LayerState::Done => format!("{id}  done      {}", bytes(layer.size)),
        LayerState::Fetching => format!(
            "{id}  fetching  {}  {} of {}",
            bar(layer.fetched, layer.size),
            bytes(layer.fetched),
            bytes(layer.size)
        ),
    }
}

fn bar(done: u64, all: u64) -> String {
    let part = u128::from(done.min(all)) * BAR as u128;
    let full = part
        .checked_div(u128::from(all))
        .map_or(BAR, |full| usize::try_from(full).unwrap_or(BAR).min(BAR));
    format!("[{}{}]", "=".repeat(full), " ".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        assert_eq!(bar(0, 10), format!("[{}]", " ".repeat(BAR)));
        assert_eq!(bar(10, 10), format!("[{}]", "=".repeat(BAR)));
        assert_eq!(bar(0, 0), format!("[{}]", "=".repeat(BAR)));
        assert_eq!(bar(u64::MAX, 1), format!("[{}]", "=".repeat(BAR)));
    }
}
