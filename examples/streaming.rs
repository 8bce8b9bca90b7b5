// cargo run --release --example streaming -- HuggingFaceTB/SmolLM2-135M-Instruct "Write a limerick about bricks."
//! Text as it is made, and how long the first token took.

use std::io::Write;
use std::time::Instant;

use firebrick::{Llm, Message, Options, SamplingParams};
use firebrick_text::RenderOptions;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments.next().unwrap_or_else(|| "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned());
    let question = arguments.next().unwrap_or_else(|| "Write a limerick about bricks.".to_owned());
    let mut llm = Llm::load(&model, Options::default())?;

    let template = llm.loaded().chat_template.as_ref().ok_or("the model has no chat template")?;
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let prompt = template.render(&[Message::new("user", question)], &options)?;
    let tokens = llm.loaded().tokenizer.encode(&prompt, false);

    let params = SamplingParams { temperature: 0.7, max_tokens: Some(120), ..SamplingParams::default() };
    let started = Instant::now();
    let mut first = None;
    let completion = llm.generate_streaming(vec![tokens], &params, |_, text| {
        first.get_or_insert_with(|| started.elapsed());
        print!("{text}");
        // Without it the words wait for the end of the line.
        let _ = std::io::stdout().flush();
    })?;
    let first = first.unwrap_or_default();
    println!("\n[{} tokens, the first after {:.2} s]", completion[0].tokens.len(), first.as_secs_f64());
    Ok(())
}
