//! Messages to a prompt, by the model's own Jinja template, rendered as transformers renders it.
//!
//! A template comes with a model and may be hostile or broken: it runs with bounded fuel, depth, output and size of its
//! values, reads nothing but the values given here, and ends in an error when it reaches a limit. Templates from clients
//! are never run.

use std::io;
use std::sync::Arc;

use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value};

use crate::chat_message::{ContentPart, Message, MessageContent, RenderOptions, SpecialTokens};
use crate::error::TemplateError;
use crate::strftime::strftime;
use crate::template_budget::{BudgetSpent, Meter};
use crate::template_functions::{self, Raised};
use crate::{template_meter, template_source};

const NAME: &str = "chat_template";
/// Variables that options may not set through `kwargs`.
const RESERVED: [&str; 4] = ["messages", "tools", "add_generation_prompt", "strftime_now"];
/// What the probe says when it asks whether the template takes plain strings.
const PROBE: &str = "cf8b2f61";

/// How much a template may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateLimits {
    /// Bytes of the template itself.
    pub source_bytes: usize,
    /// Instructions of one rendering; a message costs some hundreds.
    pub fuel: u64,
    /// Nested blocks and macro calls.
    pub depth: usize,
    /// Bytes of the prompt.
    pub output_bytes: usize,
    /// Bytes of all values that one rendering reads and makes, each as often as it is used.
    pub value_bytes: usize,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self { source_bytes: 1 << 20, fuel: 1_000_000, depth: 64, output_bytes: 16 << 20, value_bytes: 20 << 20 }
    }
}

/// A model's chat template. Cloning shares it.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
    special: SpecialTokens,
    limits: TemplateLimits,
    content_shape: ContentShape,
}

/// In which shape a template wants the content of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentShape {
    Text,
    Parts,
}

impl ChatTemplate {
    /// Compiles a template with the default limits.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        Self::with_limits(source, special, TemplateLimits::default())
    }

    /// Compiles a template.
    pub fn with_limits(source: &str, special: SpecialTokens, limits: TemplateLimits) -> Result<Self, TemplateError> {
        if source.len() > limits.source_bytes {
            let limit = format!("{} bytes of source (it has {})", limits.source_bytes, source.len());
            return Err(TemplateError::Limit { limit });
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(limits.fuel));
        environment.set_recursion_limit(limits.depth);
        template_functions::install(&mut environment, limits.output_bytes, Meter::new(limits.value_bytes));
        let metered = template_meter::metered(&template_source::without_generation_blocks(source))
            .map_err(|reason| TemplateError::Syntax { reason })?;
        environment
            .add_template_owned(NAME, metered)
            .map_err(|error| TemplateError::Syntax { reason: error_text(&error) })?;
        let mut template = Self {
            source: source.into(),
            environment: Arc::new(environment),
            special,
            limits,
            content_shape: ContentShape::Text,
        };
        template.content_shape = template.probe_content_shape();
        Ok(template)
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template shows the tools it is given.
    pub fn takes_tools(&self) -> bool {
        let function =
            serde_json::json!({"name": PROBE, "description": "", "parameters": {"type": "object", "properties": {}}});
        let tools = Some(serde_json::json!([{"type": "function", "function": function}]));
        let options = RenderOptions { tools, add_generation_prompt: true, ..RenderOptions::default() };
        let messages = [Message::new("user", "")];
        self.run(&messages, &options, self.content_shape).is_ok_and(|prompt| prompt.contains(PROBE))
    }

    /// The prompt for a conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TemplateError> {
        if options.continue_final_message && options.add_generation_prompt {
            let reason = "continue_final_message and add_generation_prompt exclude each other".to_owned();
            return Err(TemplateError::Options { reason });
        }
        let prompt = self.run(messages, options, self.content_shape)?;
        if options.continue_final_message { cut_after_final_message(prompt, messages) } else { Ok(prompt) }
    }

    /// Most templates take strings; a template that only shows the text of part lists is given those.
    fn probe_content_shape(&self) -> ContentShape {
        let probe = [Message::new("user", PROBE)];
        let options = RenderOptions::default();
        let shows = |shape| self.run(&probe, &options, shape).is_ok_and(|prompt| prompt.contains(PROBE));
        if !shows(ContentShape::Text) && shows(ContentShape::Parts) { ContentShape::Parts } else { ContentShape::Text }
    }

    fn run(&self, messages: &[Message], options: &RenderOptions, shape: ContentShape) -> Result<String, TemplateError> {
        let variables = self.variables(messages, options, shape)?;
        let template = self.environment.get_template(NAME).expect("the template was added under this name");
        let mut context: Vec<(String, minijinja::Value)> =
            variables.into_iter().map(|(key, value)| (key, minijinja::Value::from_serialize(value))).collect();
        if let Some(time) = options.unix_time_s {
            let now = minijinja::Value::from_function(move |format: String| strftime(time, &format));
            context.push(("strftime_now".to_owned(), now));
        }
        let context: minijinja::Value = context.into_iter().collect();
        let mut output = CappedOutput { bytes: Vec::new(), bytes_max: self.limits.output_bytes };
        match template.render_captured_to(context, &mut output) {
            Ok(_) => Ok(String::from_utf8(output.bytes).expect("templates write text")),
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn variables(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        shape: ContentShape,
    ) -> Result<Map<String, Value>, TemplateError> {
        let mut variables = Map::new();
        let special = [
            ("bos_token", &self.special.bos),
            ("eos_token", &self.special.eos),
            ("pad_token", &self.special.pad),
            ("unk_token", &self.special.unk),
        ];
        for (name, token) in special {
            if let Some(token) = token {
                variables.insert(name.to_owned(), Value::from(token.as_str()));
            }
        }
        // Templates ask whether there are any.
        variables.insert("documents".to_owned(), Value::Null);
        for (name, value) in &options.kwargs {
            if RESERVED.contains(&name.as_str()) {
                let reason = format!("chat template argument {name:?} is set by the request itself");
                return Err(TemplateError::Options { reason });
            }
            variables.insert(name.clone(), value.clone());
        }
        let messages = messages.iter().map(|message| message_value(message, shape)).collect();
        variables.insert("messages".to_owned(), Value::Array(messages));
        variables.insert("tools".to_owned(), options.tools.clone().unwrap_or(Value::Null));
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(options.add_generation_prompt));
        Ok(variables)
    }

    fn explain(&self, error: &minijinja::Error) -> TemplateError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(current) = cause {
            if let Some(Raised(message)) = current.downcast_ref::<Raised>() {
                return TemplateError::Raised { message: message.clone() };
            }
            let inner = current.downcast_ref::<minijinja::Error>();
            if inner.is_some_and(|inner| inner.kind() == ErrorKind::OutOfFuel) {
                return TemplateError::Limit { limit: format!("{} instructions", self.limits.fuel) };
            }
            if current.is::<BudgetSpent>() {
                return TemplateError::Limit { limit: format!("{} bytes of values", self.limits.value_bytes) };
            }
            if current.is::<OutputFull>() || inner.is_some_and(|inner| inner.kind() == ErrorKind::WriteFailure) {
                return TemplateError::Limit { limit: format!("{} bytes of output", self.limits.output_bytes) };
            }
            cause = current.source();
        }
        TemplateError::Render { reason: error_text(error) }
    }
}

/// One message as templates see it: absent fields are undefined, absent content is empty.
fn message_value(message: &Message, shape: ContentShape) -> Value {
    let mut value = Map::new();
    value.insert("role".to_owned(), Value::from(message.role.as_str()));
    value.insert("content".to_owned(), content_value(message.content.as_ref(), shape));
    let texts = [
        ("name", &message.name),
        ("reasoning_content", &message.reasoning_content),
        ("tool_call_id", &message.tool_call_id),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            value.insert(name.to_owned(), Value::from(text.as_str()));
        }
    }
    if let Some(calls) = &message.tool_calls {
        value.insert("tool_calls".to_owned(), with_parsed_arguments(calls.clone()));
    }
    Value::Object(value)
}

fn content_value(content: Option<&MessageContent>, shape: ContentShape) -> Value {
    match (shape, content) {
        (_, None) => Value::from(""),
        (ContentShape::Text, Some(content)) => Value::from(content.text()),
        (ContentShape::Parts, Some(MessageContent::Text(text))) => {
            part_list(&[ContentPart::Text { text: text.clone() }])
        }
        (ContentShape::Parts, Some(MessageContent::Parts(parts))) => part_list(parts),
    }
}

fn part_list(parts: &[ContentPart]) -> Value {
    serde_json::to_value(parts).expect("texts are JSON")
}

/// The API carries the arguments of a call as JSON text; templates want the object.
fn with_parsed_arguments(mut calls: Value) -> Value {
    for call in calls.as_array_mut().into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
        if let Some(parsed) = parsed {
            *arguments = Value::Object(parsed);
        }
    }
    calls
}

/// Ends the prompt where the last message's own text ends, with the white space that the template kept.
fn cut_after_final_message(mut prompt: String, messages: &[Message]) -> Result<String, TemplateError> {
    let failed = |reason: &str| Err(TemplateError::Options { reason: reason.to_owned() });
    let Some(content) = messages.last().and_then(|message| message.content.as_ref()) else {
        return failed("continue_final_message needs a last message with content");
    };
    let text = match content {
        MessageContent::Text(text) => text.as_str(),
        MessageContent::Parts(parts) => match parts.last() {
            Some(ContentPart::Text { text }) => text.as_str(),
            None => return failed("continue_final_message needs a last message with content"),
        },
    };
    let Some(start) = prompt.rfind(text.trim()) else {
        return failed("continue_final_message: the chat template does not show the last message as it is");
    };
    let kept = if prompt[start..].starts_with(text.trim_start()) { text.trim_start() } else { text.trim() };
    prompt.truncate(start + kept.len());
    Ok(prompt)
}

fn error_text(error: &minijinja::Error) -> String {
    let detail =
        error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

/// Collects output up to a limit.
struct CappedOutput {
    bytes: Vec<u8>,
    bytes_max: usize,
}

/// The output limit was reached.
#[derive(Debug, thiserror::Error)]
#[error("the output limit is reached")]
struct OutputFull;

impl io::Write for CappedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::Error::other(OutputFull));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
