//! Results: a table or JSON on standard output, and JSON in a file.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::output::print;

/// Where results go.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Results")]
pub struct ReportArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,

    /// Write the results to this file, as JSON
    #[arg(long, alias = "output-json", value_name = "FILE")]
    pub result_file: Option<PathBuf>,
}

impl ReportArgs {
    /// Prints and writes the results. The table's lines are a label and a key with the number of decimals shown.
    pub fn publish(
        &self,
        title: &str,
        lines: &[(&str, &str, usize)],
        results: Map<String, Value>,
    ) -> Result<(), Failure> {
        let results = Value::Object(results);
        if let Some(path) = &self.result_file {
            let written = fs::write(path, format!("{results:#}\n"));
            written.map_err(|error| {
                Failure::Run(format!("cannot write {}: {error}; check --result-file", path.display()))
            })?;
        }
        if self.json {
            print(&format!("{results:#}\n"));
            return Ok(());
        }
        let mut table = format!("{title:=^60}\n");
        for (label, key, decimals) in lines {
            match results.get(key).and_then(Value::as_f64) {
                Some(value) => table.push_str(&format!("{label:<44}{value:>16.decimals$}\n")),
                None if key.is_empty() => table.push_str(&format!("{label:-^60}\n")),
                None => {}
            }
        }
        table.push_str(&"=".repeat(60));
        table.push('\n');
        print(&table);
        Ok(())
    }
}
