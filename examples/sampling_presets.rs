// cargo run --release --example sampling_presets -- HuggingFaceTB/SmolLM2-135M-Instruct
//! One question under five presets: from the same answer every time to a free one.

use firebrick::{Llm, Message, Options, SamplingParams};

/// A name, parameters, and texts that end the answer.
type Preset = (&'static str, SamplingParams, &'static [&'static str]);

fn presets() -> [Preset; 5] {
    let base = SamplingParams::default();
    let with = |temperature, top_p, max_tokens| SamplingParams {
        temperature,
        top_p,
        max_tokens: Some(max_tokens),
        ..base.clone()
    };
    [
        ("deterministic", with(0.0, 1.0, 512), &[]),
        ("creative", SamplingParams { top_k: Some(50), ..with(1.0, 0.95, 1024) }, &[]),
        ("balanced", SamplingParams { frequency_penalty: 0.1, presence_penalty: 0.1, ..with(0.7, 0.9, 512) }, &[]),
        ("code", with(0.2, 0.95, 2048), &["```\n"]),
        ("chat", SamplingParams { repetition_penalty: 1.1, ..with(0.7, 0.9, 512) }, &["User:", "Human:"]),
    ]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned());
    let mut llm = Llm::load(&model, Options::default())?;
    let question = [Message::new("user", "Describe the sea in one sentence.")];
    for (name, params, stops) in presets() {
        // Short, so that the example ends soon; the presets' own limits are above.
        let params = SamplingParams { max_tokens: params.max_tokens.map(|most| most.min(60)), ..params };
        let answer = llm.chat(&question, &params)?;
        let end = stops.iter().filter_map(|stop| answer.text.find(stop)).min().unwrap_or(answer.text.len());
        println!("{name:>14}: {}", &answer.text[..end]);
    }
    Ok(())
}
