//! Chat templates: whatever the text, a prompt within the limits or an error, and soon.
#![no_main]

mod caught;

use firebrick_text::{ChatTemplate, Message, RenderOptions, SpecialTokens, TemplateLimits};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: caught::only_what_is_not_caught_counts(), |source: &str| {
    let limits = TemplateLimits { fuel: 50_000, output_bytes: 64 << 10, ..TemplateLimits::default() };
    let Ok(template) = ChatTemplate::with_limits(source, SpecialTokens::default(), limits) else { return };
    template.takes_tools();
    let messages = [Message::new("system", "Be brief."), Message::new("user", "Hi é"), Message::new("assistant", "")];
    if let Ok(prompt) = template.render(&messages, &RenderOptions::default()) {
        assert!(prompt.len() <= limits.output_bytes, "{} bytes", prompt.len());
    }
});
