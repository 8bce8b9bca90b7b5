//! The tools of a request, checked, and what the model may do with them.

use std::collections::HashSet;

use firebrick_text::{Dialect, GrammarSource, JsonOrCalls, ToolFormat, ToolReading, for_each_schema};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::limits::Limits;
use crate::openai::{Tool, ToolFunction};
use crate::parameter::at_most;
use crate::structured_output::AskedGrammar;

const NAME_BYTES_MAX: usize = 128;

/// What the model may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// Call nothing.
    #[default]
    None,
    /// Decide by itself.
    Auto,
    /// Call at least one tool.
    Required,
    /// Call this tool.
    Named(String),
}

/// Offered tools and the choice among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolUse {
    tools: Vec<OfferedTool>,
    choice: ToolChoice,
    /// Several calls in one answer are allowed.
    parallel: bool,
}

/// One tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OfferedTool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Option<Map<String, Value>>,
}

impl OfferedTool {
    /// From a function as OpenAI's API writes it; `path` names it in errors.
    pub fn new(function: ToolFunction, path: &str) -> Result<Self, ApiError> {
        let at = |field: &str| format!("{path}.{field}");
        let name = function.name.unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(legal) {
            let message = format!("{} must be 1 to {NAME_BYTES_MAX} letters, digits or any of _-.:/", at("name"));
            return Err(ApiError::parameter(at("name"), message));
        }
        let parameters = match function.parameters {
            None | Some(Value::Null) => None,
            Some(Value::Object(schema)) => Some(schema),
            Some(_) => {
                let message = format!("{} must be a JSON schema, an object", at("parameters"));
                return Err(ApiError::parameter(at("parameters"), message));
            }
        };
        Ok(Self { name, description: function.description, parameters })
    }

    fn schema(&self) -> Value {
        match &self.parameters {
            Some(schema) if !schema.is_empty() => Value::Object(schema.clone()),
            _ => json!({"type": "object"}),
        }
    }
}

/// Tools as chat completions carry them.
pub fn offered_tools(tools: Vec<Tool>) -> Result<Vec<OfferedTool>, ApiError> {
    let offered = |(index, tool): (usize, Tool)| {
        let path = format!("tools[{index}]");
        match (tool.r#type.as_deref(), tool.function) {
            (Some("function") | None, Some(function)) => OfferedTool::new(function, &format!("{path}.function")),
            (Some("function") | None, None) => {
                Err(ApiError::parameter(path.clone(), format!("{path}.function is missing")))
            }
            (Some(_), _) => {
                let field = format!("{path}.type");
                Err(ApiError::parameter(field.clone(), format!("{field}: only the type function is supported")))
            }
        }
    };
    tools.into_iter().enumerate().map(offered).collect()
}

impl ToolUse {
    /// Checks tools and choice against each other; by default the model decides where there are tools.
    pub fn new(
        tools: Vec<OfferedTool>,
        choice: Option<ToolChoice>,
        parallel: bool,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        at_most("tools", "tools", tools.len(), limits.tools_max)?;
        let mut names = HashSet::new();
        if let Some(twice) = tools.iter().find(|tool| !names.insert(tool.name.as_str())) {
            return Err(ApiError::parameter("tools", format!("the tool {} is offered twice", twice.name)));
        }
        let choice = match choice {
            // Clients send `auto` along with an empty list.
            None | Some(ToolChoice::Auto) if tools.is_empty() => ToolChoice::None,
            None => ToolChoice::Auto,
            Some(ToolChoice::Required | ToolChoice::Named(_)) if tools.is_empty() => {
                return Err(ApiError::parameter(
                    "tool_choice",
                    "tool_choice asks for a call, but no tools are offered",
                ));
            }
            Some(ToolChoice::Named(name)) if !names.contains(name.as_str()) => {
                let name: String = name.chars().take(NAME_BYTES_MAX).collect();
                let message = format!("tool_choice names {:?}, which is not among the tools", name);
                return Err(ApiError::parameter("tool_choice", message));
            }
            Some(choice) => choice,
        };
        Ok(Self { tools, choice, parallel })
    }

    /// What the model may do.
    pub fn choice(&self) -> &ToolChoice {
        &self.choice
    }

    /// Whether one answer may hold several calls.
    pub fn is_parallel(&self) -> bool {
        self.parallel
    }

    /// The tools as chat templates take them; `None` when nothing may be called.
    pub fn for_template(&self) -> Option<Value> {
        let tool = |tool: &OfferedTool| {
            let mut function = Map::new();
            function.insert("name".to_owned(), json!(tool.name));
            function.insert("description".to_owned(), json!(tool.description.as_deref().unwrap_or_default()));
            let parameters = tool.parameters.clone();
            let none = || json!({"type": "object", "properties": {}}).as_object().cloned().unwrap_or_default();
            function.insert("parameters".to_owned(), Value::Object(parameters.unwrap_or_else(none)));
            json!({"type": "function", "function": function})
        };
        (self.choice != ToolChoice::None).then(|| self.tools.iter().map(tool).collect())
    }

    /// How calls are found in the answer.
    pub fn reading(&self, dialect: &Dialect) -> Option<ToolReading> {
        match &self.choice {
            ToolChoice::None => None,
            ToolChoice::Auto => dialect.tools.map(ToolReading::Format),
            ToolChoice::Required => Some(ToolReading::List),
            ToolChoice::Named(name) => Some(ToolReading::ArgumentsOf(name.clone())),
        }
    }

    /// The grammar that a forced answer follows.
    pub fn grammar(&self) -> Option<AskedGrammar> {
        let schema = self.schema()?;
        Some(AskedGrammar { field: "tool_choice", source: GrammarSource::Json { schema, whitespace: None } })
    }

    /// The grammar that was asked for, with room for calls where the model may decide to make some instead.
    pub fn beside(&self, asked: AskedGrammar, format: Option<ToolFormat>) -> Result<AskedGrammar, ApiError> {
        let Some(format) = format.filter(|_| self.choice == ToolChoice::Auto) else { return Ok(asked) };
        let AskedGrammar { field, source } = asked;
        let (GrammarSource::Json { schema: answer, whitespace }, Some(written)) = (source, format.written()) else {
            let message = format!(
                "tools are offered, but {field} leaves no room for calls: it must be JSON, and the model one that \
                 writes calls as Hermes, Qwen or Llama 3 do; set tool_choice to none or required, or leave {field} out"
            );
            return Err(ApiError::parameter("tools", message));
        };
        let calls = self.call_schemas(written.arguments, "#/anyOf");
        let (begin, end) = (written.begin.to_owned(), written.end.to_owned());
        let several = written.several && self.parallel;
        let either = JsonOrCalls { answer, whitespace, call: json!({ "anyOf": calls }), begin, end, several };
        Ok(AskedGrammar { field, source: GrammarSource::JsonOrCalls(either) })
    }

    /// The schema of a call of each tool, which come to stand at `place`.
    fn call_schemas(&self, arguments: &str, place: &str) -> Vec<Value> {
        let call = |(number, tool): (usize, &OfferedTool)| {
            let mut schema = tool.schema();
            move_references(&mut schema, &format!("{place}/{number}/properties/{arguments}"));
            json!({
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [tool.name]}, arguments: schema},
                "required": ["name", arguments],
                "additionalProperties": false,
            })
        };
        self.tools.iter().enumerate().map(call).collect()
    }

    /// The JSON schema that a forced answer follows.
    fn schema(&self) -> Option<Value> {
        match &self.choice {
            ToolChoice::None | ToolChoice::Auto => None,
            ToolChoice::Named(name) => self.tools.iter().find(|tool| tool.name == *name).map(OfferedTool::schema),
            ToolChoice::Required => {
                let calls = self.call_schemas("parameters", "#/items/anyOf");
                let mut schema = json!({"type": "array", "minItems": 1, "items": {"anyOf": calls}});
                if !self.parallel {
                    schema["maxItems"] = json!(1);
                }
                Some(schema)
            }
        }
    }
}

/// Makes the references of a schema mean the same when it stands at `place` within another one, `#/…` being a pointer
/// from the root.
fn move_references(schema: &mut Value, place: &str) {
    for_each_schema(schema, &mut |fields| {
        let Some(Value::String(reference)) = fields.get_mut("$ref") else { return };
        if let Some(pointer) = reference.strip_prefix('#').filter(|rest| rest.is_empty() || rest.starts_with('/')) {
            // A pointer that ends with a slash means the root too.
            *reference = format!("{place}{}", if pointer == "/" { "" } else { pointer });
        }
    });
}

/// `tool_choice` as chat completions and responses carry it.
pub fn tool_choice(value: Option<&Value>) -> Result<Option<ToolChoice>, ApiError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let named = || {
        let is_function = value["type"].as_str().is_none_or(|kind| kind == "function");
        // The responses API writes the name beside the type, chat completions one level deeper.
        let name = value.pointer("/function/name").or_else(|| value.get("name")).and_then(Value::as_str);
        name.filter(|name| is_function && !name.is_empty()).map(|name| ToolChoice::Named(name.to_owned()))
    };
    let choice = match value.as_str() {
        Some("none") => Some(ToolChoice::None),
        Some("auto") => Some(ToolChoice::Auto),
        Some("required") => Some(ToolChoice::Required),
        Some(_) => None,
        None => named(),
    };
    let message = "tool_choice must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": …}}";
    choice.map(Some).ok_or_else(|| ApiError::parameter("tool_choice", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> OfferedTool {
        OfferedTool { name: name.to_owned(), ..OfferedTool::default() }
    }

    fn of(names: &[&str], choice: Value) -> Result<ToolUse, ApiError> {
        let tools = names.iter().map(|name| tool(name)).collect();
        ToolUse::new(tools, tool_choice(Some(&choice))?, true, &Limits::default())
    }

    #[test]
    fn tools_are_the_models_choice_unless_said_otherwise() {
        let choice = |names, choice| of(names, choice).expect("valid").choice;
        assert_eq!(choice(&["f"], Value::Null), ToolChoice::Auto);
        assert_eq!(choice(&[], Value::Null), ToolChoice::None);
        assert_eq!(choice(&[], json!("auto")), ToolChoice::None);
        assert_eq!(choice(&["f"], json!("none")), ToolChoice::None);
        assert_eq!(choice(&["f"], json!("required")), ToolChoice::Required);
        let named = ToolChoice::Named("f".to_owned());
        assert_eq!(choice(&["f"], json!({"type": "function", "function": {"name": "f"}})), named);
        assert_eq!(choice(&["f"], json!({"type": "function", "name": "f"})), named);
    }

    #[test]
    fn contradictions_name_the_parameter() {
        let wrong = [
            (of(&[], json!("required")), "tool_choice"),
            (of(&["f"], json!({"type": "function", "function": {"name": "g"}})), "tool_choice"),
            (of(&["f"], json!("always")), "tool_choice"),
            (of(&["f"], json!(5)), "tool_choice"),
            (of(&["f", "f"], Value::Null), "tools"),
        ];
        for (result, param) in wrong {
            assert_eq!(result.expect_err("wrong").param.as_deref(), Some(param));
        }
        let many: Vec<String> = (0..1000).map(|number| format!("f{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(of(&many, Value::Null).is_err());
    }

    #[test]
    fn names_and_schemas_are_checked() {
        let function = |name: &str, parameters| ToolFunction {
            name: Some(name.to_owned()),
            parameters: Some(parameters),
            ..ToolFunction::default()
        };
        let check = |function| OfferedTool::new(function, "tools[3].function").map_err(|error| error.param);
        assert!(check(function("get_weather-2", json!({}))).is_ok());
        assert_eq!(check(function("a b", json!({}))), Err(Some("tools[3].function.name".to_owned())));
        assert_eq!(check(function("f", json!([]))), Err(Some("tools[3].function.parameters".to_owned())));
        assert_eq!(check(ToolFunction::default()), Err(Some("tools[3].function.name".to_owned())));
    }

    #[test]
    fn a_forced_call_has_a_schema() {
        let named = of(&["f"], json!({"type": "function", "name": "f"})).expect("valid");
        assert_eq!(named.schema(), Some(json!({"type": "object"})));
        let required = of(&["f", "g"], json!("required")).expect("valid").schema().expect("forced");
        assert_eq!(required["items"]["anyOf"][1]["properties"]["name"]["enum"], json!(["g"]));
        assert_eq!(required.get("maxItems"), None);
        let one = ToolUse::new(vec![tool("f")], Some(ToolChoice::Required), false, &Limits::default());
        assert_eq!(one.expect("valid").schema().expect("forced")["maxItems"], json!(1));
        assert_eq!(of(&["f"], json!("auto")).expect("valid").schema(), None);
    }

    #[test]
    fn references_of_a_tool_stay_within_its_own_schema() {
        let parameters = json!({
            "properties": {
                "$ref": {"$ref": "#/$defs/x"}, "self": {"$ref": "#"}, "root": {"$ref": "#/"},
                "other": {"anyOf": [{"$ref": "#/properties/self"}, {"$ref": "https://example.org/x"}]},
                "data": {"const": {"$ref": "#"}, "default": {"$ref": "#"}},
            },
            "$defs": {"x": {"items": {"$ref": "#/$defs/x"}}},
        });
        let with_references = OfferedTool { parameters: parameters.as_object().cloned(), ..tool("g") };
        let tools = vec![tool("f"), with_references];
        let tools = ToolUse::new(tools, Some(ToolChoice::Required), true, &Limits::default()).expect("valid");
        let schema = tools.schema().expect("forced");
        let place = "/items/anyOf/1/properties/parameters";
        let moved = schema.pointer(place).expect("the schema");
        let reference = |pointer: &str| moved.pointer(pointer).and_then(Value::as_str).expect("a reference");
        for (at, meant) in [
            ("/properties/$ref/$ref", "/$defs/x"),
            ("/properties/self/$ref", ""),
            ("/properties/root/$ref", ""),
            ("/properties/other/anyOf/0/$ref", "/properties/self"),
            ("/$defs/x/items/$ref", "/$defs/x"),
        ] {
            assert_eq!(reference(at), format!("#{place}{meant}"));
            assert!(schema.pointer(&reference(at)[1..]).is_some());
        }
        assert_eq!(reference("/properties/other/anyOf/1/$ref"), "https://example.org/x");
        assert_eq!(moved["properties"]["data"], parameters["properties"]["data"]);
    }

    #[test]
    fn templates_get_tools_in_the_order_of_the_api() {
        let tools = of(&["f"], json!("auto")).expect("valid").for_template().expect("tools");
        let expected = r#"[{"type":"function","function":{"name":"f","description":"","parameters":{"type":"object","properties":{}}}}]"#;
        assert_eq!(tools.to_string(), expected);
        assert_eq!(of(&["f"], json!("none")).expect("valid").for_template(), None);
    }
}
