//! How a model writes reasoning and tool calls: seen from its chat template, or said by name.

use crate::chat_template::ChatTemplate;
use crate::reasoning::ReasoningFormat;
use crate::tools::ToolFormat;

/// The formats of one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    /// How it calls tools; `None`: what looks like a call is text.
    pub tools: Option<ToolFormat>,
    /// The chat template takes tools. Otherwise they are described in the system message.
    pub template_takes_tools: bool,
    /// How it reasons, if it does.
    pub reasoning: Option<ReasoningFormat>,
}

/// A name that stands for no format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} is not known; known: auto, none, {known}")]
pub struct UnknownFormat {
    name: String,
    known: String,
}

impl Dialect {
    /// What the template's text tells. A template that takes tools in a form of its own counts as Hermes, the most
    /// common one.
    pub fn of(template: &ChatTemplate) -> Self {
        let source = template.source();
        let template_takes_tools = template.takes_tools();
        // A described tool is called in the described format, whatever the template says elsewhere.
        let own = template_takes_tools.then(|| ToolFormat::of_template(source)).flatten();
        Self {
            tools: Some(own.unwrap_or(ToolFormat::Hermes)),
            template_takes_tools,
            reasoning: ReasoningFormat::of_template(source),
        }
    }

    /// No reasoning, and tools by description: models without a chat template.
    pub fn plain() -> Self {
        Self { tools: Some(ToolFormat::Hermes), template_takes_tools: false, reasoning: None }
    }

    /// With another format for tool calls: `auto` keeps this one, `none` leaves calls in the text.
    pub fn with_tool_parser(mut self, name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "auto" => {}
            "none" => self.tools = None,
            _ => self.tools = Some(ToolFormat::named(name).ok_or_else(|| unknown(name, ToolFormat::names()))?),
        }
        Ok(self)
    }

    /// With another format for reasoning: `auto` keeps this one, `none` leaves reasoning in the text.
    pub fn with_reasoning_parser(mut self, name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "auto" => {}
            "none" => self.reasoning = None,
            _ => {
                let format = ReasoningFormat::named(name);
                self.reasoning = Some(format.ok_or_else(|| unknown(name, ReasoningFormat::names()))?);
            }
        }
        Ok(self)
    }

    /// Words that the readers must see even where they are special tokens.
    pub fn markers(&self) -> impl Iterator<Item = &'static str> {
        let tools = self.tools.map_or(&[][..], ToolFormat::markers).iter().copied();
        tools.chain(self.reasoning.into_iter().flat_map(|reasoning| reasoning.markers()))
    }
}

fn unknown(name: &str, known: impl Iterator<Item = &'static str>) -> UnknownFormat {
    UnknownFormat { name: name.chars().take(100).collect(), known: known.collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_message::SpecialTokens;

    fn dialect(source: &str) -> Dialect {
        Dialect::of(&ChatTemplate::new(source, SpecialTokens::default()).expect("a valid template"))
    }

    #[test]
    fn formats_are_seen_in_templates() {
        let with = |words: &str| {
            format!("{{% if tools %}}{{{{ tools | tojson }}}} {words} {{% endif %}}{{{{ messages[0].content }}}}")
        };
        for (words, format) in [
            ("<tool_call>", ToolFormat::Hermes),
            ("[TOOL_CALLS]", ToolFormat::Mistral),
            ("<｜tool▁calls▁begin｜>", ToolFormat::DeepSeek),
            ("<|python_tag|>", ToolFormat::Llama3Json),
            ("[func_name1(params_name1=params_value1)]", ToolFormat::Pythonic),
            ("functools[", ToolFormat::Phi),
            ("in some other way", ToolFormat::Hermes),
        ] {
            let dialect = dialect(&with(words));
            assert_eq!((dialect.tools, dialect.template_takes_tools), (Some(format), true), "{words}");
        }
        assert_eq!(dialect("{{ messages[0].content }}</think>").reasoning.map(|format| format.end), Some("</think>"));
    }

    #[test]
    fn templates_without_tools_are_told_of_them_in_hermes() {
        let plain = dialect("[TOOL_CALLS]{{ messages[0].content }}");
        assert_eq!(plain, Dialect { reasoning: None, ..Dialect::plain() });
    }

    #[test]
    fn names_choose_formats_and_unknown_ones_list_what_is_known() {
        let chosen =
            Dialect::plain().with_tool_parser("mistral").and_then(|it| it.with_reasoning_parser("deepseek_r1"));
        let chosen = chosen.expect("known names");
        assert_eq!(chosen.tools, Some(ToolFormat::Mistral));
        assert!(chosen.reasoning.is_some_and(|reasoning| reasoning.is_implied));
        assert_eq!(Dialect::plain().with_tool_parser("none").expect("known").tools, None);
        let error = Dialect::plain().with_tool_parser("hermse").expect_err("unknown").to_string();
        assert!(error.contains("hermse") && error.contains("llama3_json"), "{error}");
    }
}
