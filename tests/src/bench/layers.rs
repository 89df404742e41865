//! What an image of many layers costs beside one of a single layer: creating a container and deleting
//! it, each in a pod that has no layer yet.

use tokio::time::Instant;

use super::figures::{Figures, milliseconds};
use crate::{
    Outcome,
    cri::{self, Cri},
    host::REGISTRY,
    images::recipes::MANY_LAYERS,
};

/// Measures, in `repeat` pods for each of the two images, in turn.
///
/// # Errors
/// If anything of it does not work.
pub async fn measure(cri: &Cri, one: &str, repeat: usize, figures: &mut Figures) -> Outcome {
    let many = format!("{REGISTRY}/layers100:latest");
    cri.pull(&many).await?;
    let name = |what: &str, layers: usize| format!("{what}, image of {layers} layers");
    for number in 0..repeat * 2 {
        let (image, layers) = match number % 2 {
            0 => (one, 1),
            _ => (many.as_str(), MANY_LAYERS),
        };
        let config = cri::pod(&format!("layers{number}"));
        let pod = cri.run_pod(config.clone()).await?;
        let mut ids = Vec::new();
        for what in ["CreateContainer", "CreateContainer again"] {
            let number = ids.len();
            let container = cri::script(&format!("c{number}"), image, "exec sleep 100000");
            let began = Instant::now();
            ids.push(cri.create(&pod, &config, container).await?);
            let figure = name(what, layers);
            figures.add(&figure, "ms", milliseconds(began.elapsed()));
        }
        for what in ["RemoveContainer, layers stay", "RemoveContainer"] {
            let Some(id) = ids.pop() else { break };
            let began = Instant::now();
            cri.remove(&id).await?;
            let figure = name(what, layers);
            figures.add(&figure, "ms", milliseconds(began.elapsed()));
        }
        cri.remove_pod(&pod).await?;
    }
    let median = |layers| figures.median(&name("CreateContainer", layers));
    if let (Some(one), Some(many)) = (median(1), median(MANY_LAYERS)) {
        figures.hold("CreateContainer, 100 layers against 1", many / one, 2.0);
    }
    Ok(())
}
