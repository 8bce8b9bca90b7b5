//! Tools and calls on the wire.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A tool that a client offers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tool {
    /// `function`; other kinds are refused.
    pub r#type: Option<String>,
    /// The function.
    pub function: Option<ToolFunction>,
}

/// A function that a client offers.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ToolFunction {
    /// Its name.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object.
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema; they do whenever a call is forced.
    pub strict: Option<bool>,
}

/// A call that an assistant has made, sent back as part of the conversation.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PastCall {
    /// The id that its result names.
    pub id: Option<String>,
    /// `function`.
    pub r#type: Option<String>,
    /// What was called.
    pub function: Option<PastFunction>,
}

/// What was called.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PastFunction {
    /// The tool.
    pub name: Option<String>,
    /// A JSON object, as text or as it is.
    pub arguments: Option<Value>,
}

/// A call in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplyCall {
    /// The id that its result will name.
    pub id: String,
    /// `function`.
    pub r#type: &'static str,
    /// What to call.
    pub function: ReplyFunction,
}

/// What to call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplyFunction {
    /// The tool.
    pub name: String,
    /// A JSON object as text.
    pub arguments: String,
}

/// What a chunk adds to a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CallDelta {
    /// The call's number within its choice.
    pub index: u32,
    /// In the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// The addition.
    pub function: FunctionDelta,
}

/// What a chunk adds to what is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionDelta {
    /// In the call's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' text.
    pub arguments: String,
}
