//! One name per tensor, whichever way a safetensors file spells it.

use crate::config::Architecture;

/// The canonical name; `None` for tensors that are no part of the language model's weights: vision towers, stored
/// rotary tables and attention masks.
pub(crate) fn normalise(architecture: Architecture, name: &str) -> Option<String> {
    if name.ends_with(".rotary_emb.inv_freq") {
        return None;
    }
    match architecture {
        Architecture::Gemma3 => gemma3(name),
        Architecture::Opt => Some(with_prefix(name, &["decoder."], "model.")),
        Architecture::Gpt2 if name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") => None,
        Architecture::Gpt2 => Some(with_prefix(name, &["h.", "wte.", "wpe.", "ln_f."], "transformer.")),
        _ => Some(name.to_owned()),
    }
}

/// Multimodal files nest the language model, in one of two orders.
fn gemma3(name: &str) -> Option<String> {
    const OTHER_PARTS: [&str; 4] =
        ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
    if OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
        return None;
    }
    if let Some(inner) = name.strip_prefix("model.language_model.") {
        return Some(format!("model.{inner}"));
    }
    Some(name.strip_prefix("language_model.").unwrap_or(name).to_owned())
}

fn with_prefix(name: &str, starts: &[&str], prefix: &str) -> String {
    let bare = starts.iter().any(|start| name.starts_with(start));
    if bare { format!("{prefix}{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_has_one_name() {
        let cases = [
            (Architecture::Opt, "decoder.layers.0.fc1.weight", Some("model.decoder.layers.0.fc1.weight")),
            (Architecture::Opt, "model.decoder.layers.0.fc1.weight", Some("model.decoder.layers.0.fc1.weight")),
            (Architecture::Gpt2, "h.0.attn.c_attn.weight", Some("transformer.h.0.attn.c_attn.weight")),
            (Architecture::Gpt2, "transformer.wte.weight", Some("transformer.wte.weight")),
            (Architecture::Gpt2, "h.0.attn.bias", None),
            (Architecture::Gpt2, "h.0.attn.c_attn.bias", Some("transformer.h.0.attn.c_attn.bias")),
            (Architecture::Gemma3, "language_model.model.norm.weight", Some("model.norm.weight")),
            (Architecture::Gemma3, "model.language_model.norm.weight", Some("model.norm.weight")),
            (Architecture::Gemma3, "vision_tower.x.weight", None),
            (Architecture::Llama, "model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ];
        for (architecture, name, expected) in cases {
            assert_eq!(normalise(architecture, name).as_deref(), expected, "{name}");
        }
    }
}
