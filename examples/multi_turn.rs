// cargo run --release --example multi_turn -- HuggingFaceTB/SmolLM2-135M-Instruct
//! Two conversations that know nothing of each other, side by side on one engine. What a conversation has said before
//! comes from the prefix cache, so that later turns begin as fast as the first.

use std::collections::BTreeMap;

use firebrick::{Llm, Message, Options, SamplingParams};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned());
    let mut llm = Llm::load(&model, Options::default())?;
    let params = SamplingParams { max_tokens: Some(40), ..SamplingParams::greedy() };

    let turns = [
        ("user123", "My favourite colour is green. What could I paint in it?"),
        ("user456", "I have a dog called Rex. What does he need?"),
        ("user123", "What is my favourite colour?"),
        ("user456", "What is my dog called?"),
    ];
    let mut conversations: BTreeMap<&str, Vec<Message>> = BTreeMap::new();
    for (user, text) in turns {
        let messages = conversations.entry(user).or_default();
        messages.push(Message::new("user", text));
        let answer = llm.chat(messages, &params)?;
        println!("{user}: {text}\n     -> {}\n", answer.text);
        messages.push(Message::new("assistant", answer.text));
    }
    let stats = llm.loaded().engine.stats();
    println!("{} of {} prompt tokens came from the prefix cache", stats.prefix_cache_hits, stats.prefix_cache_queries);
    Ok(())
}
