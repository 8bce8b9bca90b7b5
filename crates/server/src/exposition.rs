//! Prometheus text: labels from fixed sets only. A family stands once, however often it is begun: the samples of several
//! models follow each other in it.

use std::collections::HashMap;
use std::fmt::{Display, Write};

use crate::histogram::Histogram;

/// Builds the text of `/metrics`.
pub struct Exposition {
    /// In the order in which they were first begun.
    families: Vec<String>,
    by_name: HashMap<String, usize>,
    current: usize,
}

/// Labels of one series, in order.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    /// An empty text.
    pub fn new() -> Self {
        Self { families: Vec::new(), by_name: HashMap::new(), current: 0 }
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

    /// Begins a family whose samples follow, or goes on with it.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        if let Some(&known) = self.by_name.get(name) {
            self.current = known;
            return;
        }
        self.current = self.families.len();
        self.by_name.insert(name.to_owned(), self.current);
        self.families.push(String::new());
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
        self.families.concat()
    }

    fn line(&mut self, line: std::fmt::Arguments) {
        writeln!(self.families[self.current], "{line}").expect("writing to a string cannot fail");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_stands_once_with_the_samples_of_all_models() {
        let mut out = Exposition::new();
        for model in ["a", "b"] {
            out.gauge("x", "X.", &[("model_name", model)], 1.0);
            out.counter("y_total", "Y.", &[("model_name", model)], 2);
        }
        let expected = concat!(
            "# HELP x X.\n# TYPE x gauge\nx{model_name=\"a\"} 1\nx{model_name=\"b\"} 1\n",
            "# HELP y_total Y.\n# TYPE y_total counter\ny_total{model_name=\"a\"} 2\ny_total{model_name=\"b\"} 2\n",
        );
        assert_eq!(out.into_text(), expected);
    }

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
