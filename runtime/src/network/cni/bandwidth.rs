//! A pod's bandwidth: Kubernetes' two annotations become the `bandwidth` capability of CNI's
//! conventions. Pure. Not here: shaping, which the plugin does.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::network::NetworkError;

/// From the pod's point of view: what it receives, and what it sends.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits per second that Kubernetes allows: one kilobit to one petabit.
const ALLOWED: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;
/// Bits that may pass at once; the plugin's own limit is just above. A smaller burst would keep a
/// connection below the rate it has a right to.
const BURST: u64 = u32::MAX as u64;

/// The capability's argument, if the pod has one of the annotations.
///
/// # Errors
/// For a value that is not a quantity or out of range.
pub fn argument(annotations: &HashMap<String, String>) -> Result<Option<Value>, NetworkError> {
    let mut rates = Map::new();
    for (annotation, rate, burst) in [
        (INGRESS, "ingressRate", "ingressBurst"),
        (EGRESS, "egressRate", "egressBurst"),
    ] {
        let Some(text) = annotations.get(annotation) else {
            continue;
        };
        let bits = quantity(text)
            .filter(|bits| ALLOWED.contains(bits))
            .ok_or_else(|| NetworkError::Bandwidth {
                annotation,
                value: text.clone(),
            })?;
        rates.insert(rate.to_owned(), bits.into());
        rates.insert(burst.to_owned(), BURST.into());
    }
    Ok((!rates.is_empty()).then_some(Value::Object(rates)))
}

/// A Kubernetes quantity (apimachinery's resource.Quantity) as a whole number: a decimal number,
/// then a decimal or binary suffix, or a decimal exponent.
fn quantity(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let scale: u128 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            10_u128.checked_pow(digits.parse().ok().filter(|power| *power <= 18)?)?
        }
    };
    // More digits than this say nothing about bits.
    if fraction.len() > 9 || whole.len() > 18 {
        return None;
    }
    let parts = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    u64::try_from(digits.checked_mul(scale)? / parts).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn quantities_are_kubernetes_own() {
        for (text, bits) in [
            ("1000", 1_000),
            ("10M", 10_000_000),
            ("1.5k", 1_500),
            (".5M", 500_000),
            ("2Mi", 2 << 20),
            ("1e6", 1_000_000),
            ("3E3", 3_000),
            ("1P", 1_000_000_000_000_000),
        ] {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
        for text in [
            "",
            ".",
            "M",
            "-1M",
            "1m",
            "1.2.3",
            "10 M",
            "1e99",
            "1ex",
            "9999999999999999999",
            "1Zi",
        ] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn each_direction_is_told_alone() {
        assert_eq!(argument(&pod(&[("other", "10M")])).unwrap(), None);
        assert_eq!(
            argument(&pod(&[(INGRESS, "10M")])).unwrap(),
            Some(json!({"ingressRate": 10_000_000, "ingressBurst": BURST}))
        );
        let both = argument(&pod(&[(INGRESS, "1M"), (EGRESS, "2M")]))
            .unwrap()
            .unwrap();
        assert_eq!(both["egressRate"], 2_000_000);
        for bad in ["1", "2P", "fast", ""] {
            let error = argument(&pod(&[(EGRESS, bad)])).unwrap_err().to_string();
            assert!(error.contains(EGRESS) && error.contains("1k"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,40}") {
            let _ = quantity(&text);
        }
    }
}
