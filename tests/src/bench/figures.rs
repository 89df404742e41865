//! Figures: samples under a name, their median and extremes, what a figure has to hold; as a table
//! for people and as JSON for programs.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

/// All figures of a run, in the order they were first measured.
#[derive(Debug, Default)]
pub struct Figures {
    figures: Vec<Figure>,
    bounds: Vec<Bound>,
}

#[derive(Debug)]
struct Figure {
    name: String,
    unit: &'static str,
    samples: Vec<f64>,
}

/// A number that is to be held.
#[derive(Debug)]
struct Bound {
    name: String,
    measured: f64,
    at_most: f64,
}

/// A time as figures have it.
pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Figures {
    /// Adds a sample.
    pub fn add(&mut self, name: &str, unit: &'static str, sample: f64) {
        if let Some(figure) = self.figures.iter_mut().find(|f| f.name == name) {
            figure.samples.push(sample);
        } else {
            let figure = Figure {
                name: name.to_owned(),
                unit,
                samples: vec![sample],
            };
            self.figures.push(figure);
        }
    }

    /// The median of a figure's samples, if there are any.
    #[must_use]
    pub fn median(&self, name: &str) -> Option<f64> {
        let figure = self.figures.iter().find(|f| f.name == name)?;
        Some(median(&figure.samples))
    }

    /// The samples of a figure.
    #[must_use]
    pub fn samples(&self, name: &str) -> &[f64] {
        self.figures
            .iter()
            .find(|f| f.name == name)
            .map_or(&[], |f| &f.samples)
    }

    /// Compares what was measured with what has to hold.
    pub fn hold(&mut self, name: &str, measured: f64, at_most: f64) {
        self.bounds.push(Bound {
            name: name.to_owned(),
            measured,
            at_most,
        });
    }

    /// Whether everything holds.
    #[must_use]
    pub fn all_hold(&self) -> bool {
        self.bounds.iter().all(Bound::holds)
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<44} {:>6} {:>10} {:>10} {:>10} {:>4}\n",
            "figure", "unit", "median", "min", "max", "n"
        );
        for figure in &self.figures {
            let (min, max) = extremes(&figure.samples);
            // Writing to a String does not fail.
            let _ = writeln!(
                text,
                "{:<44} {:>6} {:>10.2} {min:>10.2} {max:>10.2} {:>4}",
                figure.name,
                figure.unit,
                median(&figure.samples),
                figure.samples.len(),
            );
        }
        if !self.bounds.is_empty() {
            let _ = writeln!(
                text,
                "\n{:<55} {:>10} {:>10}",
                "to hold", "measured", "at most"
            );
        }
        for bound in &self.bounds {
            let word = if bound.holds() { "holds" } else { "MISSED" };
            let _ = writeln!(
                text,
                "{:<55} {:>10.2} {:>10.2}  {word}",
                bound.name, bound.measured, bound.at_most
            );
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let figures = self.figures.iter().map(|figure| {
            let (min, max) = extremes(&figure.samples);
            json!({
                "name": figure.name, "unit": figure.unit, "median": median(&figure.samples),
                "min": min, "max": max, "samples": figure.samples,
            })
        });
        let bounds = self.bounds.iter().map(|bound| {
            json!({
                "name": bound.name, "measured": bound.measured, "at_most": bound.at_most,
                "holds": bound.holds(),
            })
        });
        json!({"figures": figures.collect::<Vec<_>>(), "holds": bounds.collect::<Vec<_>>()})
    }
}

impl Bound {
    fn holds(&self) -> bool {
        self.measured <= self.at_most
    }
}

/// The middle of the samples; of an even number, the mean of the two in the middle.
#[must_use]
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn extremes(samples: &[f64]) -> (f64, f64) {
    let min = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let max = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (min, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)]
    fn medians_of_odd_and_even_numbers_of_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_missed_bound_is_told() {
        let mut figures = Figures::default();
        figures.add("a", "ms", 3.0);
        figures.hold("a", 3.0, 4.0);
        assert!(figures.all_hold());
        figures.hold("nothing measured", f64::NAN, 4.0);
        assert!(!figures.all_hold());
        assert!(figures.table().contains("MISSED"));
        assert_eq!(figures.json()["holds"][0]["holds"], true);
    }
}
