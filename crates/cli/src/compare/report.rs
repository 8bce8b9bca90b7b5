//! How far numbers are from the truth, as a table and as JSON.

use std::fmt;

use serde_json::{Value, json};

use super::numbers::Numbers;

/// Every backend against the truth.
pub struct Report {
    model: &'static str,
    prompt_tokens: usize,
    truth: String,
    backends: Vec<Comparison>,
}

struct Comparison {
    name: String,
    layers: Vec<Distance>,
    logits: Distance,
    kl_mean: f64,
    kl_max: f64,
    /// Share of positions with the same most likely token.
    top1: f64,
    num_tokens: usize,
    diverges_at: Option<usize>,
}

#[derive(Clone, Copy)]
struct Distance {
    max_abs: f64,
    /// Length of the difference over length of the truth.
    relative: f64,
}

impl Report {
    /// Compares each run with the truth.
    pub fn new(
        model: &'static str,
        prompt_tokens: usize,
        (truth, numbers): &(String, Numbers),
        runs: &[(String, Numbers)],
    ) -> Self {
        let backends = runs.iter().map(|(name, run)| Comparison::new(name, run, numbers)).collect();
        Self { model, prompt_tokens, truth: truth.clone(), backends }
    }

    /// Whether nothing was compared.
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// Whether any backend generates another token.
    pub fn diverges(&self) -> bool {
        self.backends.iter().any(|backend| backend.diverges_at.is_some())
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        let distance = |d: &Distance| json!({"max_abs_error": d.max_abs, "relative_error": d.relative});
        let backend = |b: &Comparison| {
            json!({
                "backend": b.name,
                "layers": b.layers.iter().map(distance).collect::<Vec<_>>(),
                "logits": distance(&b.logits),
                "kl_divergence_mean": b.kl_mean,
                "kl_divergence_max": b.kl_max,
                "top1_agreement": b.top1,
                "tokens_compared": b.num_tokens,
                "first_diverging_token": b.diverges_at,
            })
        };
        json!({
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "reference": self.truth,
            "backends": self.backends.iter().map(backend).collect::<Vec<_>>(),
        })
    }
}

impl Comparison {
    fn new(name: &str, run: &Numbers, truth: &Numbers) -> Self {
        let rows = run.logits.chunks(run.vocab_size.max(1)).zip(truth.logits.chunks(truth.vocab_size.max(1)));
        let divergences: Vec<f64> = rows.clone().map(|(run, truth)| kl_divergence(truth, run)).collect();
        let agreeing = rows.filter(|(run, truth)| best(run) == best(truth)).count();
        let count = divergences.len().max(1) as f64;
        let num_tokens = run.greedy.len().min(truth.greedy.len());
        Self {
            name: name.to_owned(),
            layers: run.layers.iter().zip(&truth.layers).map(|(run, truth)| Distance::new(run, truth)).collect(),
            logits: Distance::new(&run.logits, &truth.logits),
            kl_mean: divergences.iter().sum::<f64>() / count,
            kl_max: divergences.iter().copied().fold(0.0, f64::max),
            top1: agreeing as f64 / count,
            num_tokens,
            diverges_at: (0..num_tokens).find(|&index| run.greedy[index] != truth.greedy[index]),
        }
    }
}

impl Distance {
    fn new(run: &[f32], truth: &[f32]) -> Self {
        let pairs = || run.iter().zip(truth).map(|(&run, &truth)| (f64::from(run), f64::from(truth)));
        // A NaN must not hide behind `max`, which ignores it.
        let is_number = pairs().all(|(run, truth)| run.is_finite() && truth.is_finite());
        if run.len() != truth.len() || !is_number {
            return Self { max_abs: f64::INFINITY, relative: f64::INFINITY };
        }
        let squares: f64 = pairs().map(|(run, truth)| (run - truth).powi(2)).sum();
        let length: f64 = pairs().map(|(_, truth)| truth * truth).sum();
        Self {
            max_abs: pairs().map(|(run, truth)| (run - truth).abs()).fold(0.0, f64::max),
            relative: (squares / length.max(f64::MIN_POSITIVE)).sqrt(),
        }
    }
}

/// How much information is lost when `other` is believed instead of `truth`, in nats.
fn kl_divergence(truth: &[f32], other: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        f64::from(largest) + sum.ln()
    };
    let (of_truth, of_other) = (log_sum(truth), log_sum(other));
    let terms = truth.iter().zip(other).map(|(&truth, &other)| {
        let truth = f64::from(truth) - of_truth;
        truth.exp() * (truth - (f64::from(other) - of_other))
    });
    // Rounding can make the sum of nearly nothing negative.
    terms.sum::<f64>().max(0.0)
}

fn best(logits: &[f32]) -> Option<usize> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, a prompt of {} tokens, compared with {}", self.model, self.prompt_tokens, self.truth)?;
        if self.backends.is_empty() {
            writeln!(f, "only one backend and no reference: there is nothing to compare it with")?;
        }
        for backend in &self.backends {
            writeln!(f, "\n{}\n  {:<12}{:>14}{:>16}", backend.name, "", "max error", "relative error")?;
            let layers =
                backend.layers.iter().enumerate().map(|(index, distance)| (format!("layer {index}"), distance));
            for (name, distance) in layers.chain([("logits".to_owned(), &backend.logits)]) {
                writeln!(f, "  {name:<12}{:>14.3e}{:>16.3e}", distance.max_abs, distance.relative)?;
            }
            writeln!(
                f,
                "  KL divergence of the logits: mean {:.3e}, max {:.3e} nats",
                backend.kl_mean, backend.kl_max
            )?;
            writeln!(f, "  same most likely token at {:.1} % of the positions", 100.0 * backend.top1)?;
            match backend.diverges_at {
                Some(index) => writeln!(f, "  first different token: number {} of {}", index + 1, backend.num_tokens)?,
                None => writeln!(f, "  all {} generated tokens are the same", backend.num_tokens)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_worked_out_by_hand() {
        let distance = Distance::new(&[3.0, 4.5], &[3.0, 4.0]);
        assert_eq!((distance.max_abs, distance.relative), (0.5, 0.1));
        assert_eq!(Distance::new(&[f32::NAN], &[1.0]).max_abs, f64::INFINITY);
        // Truth 1/2 and 1/2 against 3/4 and 1/4: ln(2/3)/2 + ln(2)/2
        let divergence = kl_divergence(&[0.0, 0.0], &[3f32.ln(), 0.0]);
        assert!((divergence - 0.143_841).abs() < 1e-6, "{divergence}");
    }

    #[test]
    fn the_first_different_token_is_named() {
        let numbers = |greedy: &[u32]| Numbers {
            logits: vec![0.0, 1.0],
            vocab_size: 2,
            greedy: greedy.into(),
            ..Numbers::default()
        };
        let truth = ("cpu".to_owned(), numbers(&[1, 2, 3]));
        let report = Report::new("M", 1, &truth, &[("wgpu".to_owned(), numbers(&[1, 5, 3]))]);
        assert!(report.diverges());
        assert_eq!(report.to_json()["backends"][0]["first_diverging_token"], 1);
        assert!(!Report::new("M", 1, &truth, &[("wgpu".to_owned(), numbers(&[1, 2, 3, 4]))]).diverges());
    }
}
