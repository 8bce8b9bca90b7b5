//! Prometheus text: one family at a time, labels from fixed sets only.

use std::fmt::{Display, Write};

use crate::histogram::Histogram;

/// Builds the text of `/metrics`.
pub struct Exposition {
    text: String,
}

/// Labels of one series, in order.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// An empty text.
    pub fn new() -> Self {
        Self { text: String::with_capacity(32 << 10) }
    }

    /// A gauge with one series.
    pub fn gauge(&mut self, name: &str, help: &str, labels: Labels, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, labels, value);
    }

    /// A counter with one series; `name` ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str, labels: Labels, value: u64) {
        self.family(name, "counter", help);
        self.sample(name, labels, value);
    }

    /// A histogram with one series.
    pub fn histogram(&mut self, name: &str, help: &str, labels: Labels, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let mut count = 0;
        for (bound, cumulative) in histogram.cumulative() {
            count = cumulative;
            let bound = if bound.is_infinite() { "+Inf".to_owned() } else { format!("{bound:?}") };
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&format!("{name}_bucket"), &labels, cumulative);
        }
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.sample(&format!("{name}_count"), labels, count);
    }

    /// Begins a family whose samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// One sample of the family begun last.
    pub fn sample(&mut self, name: &str, labels: Labels, value: impl Display) {
        if labels.is_empty() {
            return self.line(format_args!("{name} {value}"));
        }
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
    }

    /// The finished text.
    pub fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, line: std::fmt::Arguments) {
        writeln!(self.text, "{line}").expect("writing to a string cannot fail");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_help_type_and_samples() {
        let mut out = Exposition::new();
        out.gauge("up", "Whether it is up.", &[("model_name", "a\"b")], 1.0);
        let histogram = Histogram::new([0.5, 1.0]);
        histogram.observe(0.7);
        out.histogram("t", "Time.", &[("engine", "0")], &histogram);
        let expected = concat!(
            "# HELP up Whether it is up.\n# TYPE up gauge\nup{model_name=\"a\\\"b\"} 1\n",
            "# HELP t Time.\n# TYPE t histogram\n",
            "t_bucket{engine=\"0\",le=\"0.5\"} 0\nt_bucket{engine=\"0\",le=\"1.0\"} 1\n",
            "t_bucket{engine=\"0\",le=\"+Inf\"} 1\nt_sum{engine=\"0\"} 0.7\nt_count{engine=\"0\"} 1\n",
        );
        assert_eq!(out.into_text(), expected);
    }
}
