//! How clients ask for structured output: OpenAI's `response_format`, vLLM's `structured_outputs`, and its older
//! `guided_…` fields. What they mean is in `structured_output.rs`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

/// `response_format`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema` or `structural_tag`.
    pub r#type: String,
    /// With `json_schema`.
    pub json_schema: Option<JsonSchemaFormat>,
    /// With `json_object`: some servers take a schema here.
    pub schema: Option<Value>,
    /// With `structural_tag`.
    pub structures: Option<Vec<StructureFields>>,
    /// With `structural_tag`.
    pub triggers: Option<Vec<String>>,
    /// With `structural_tag`: a newer notation, which is refused.
    pub format: Option<Value>,
}

/// `response_format.json_schema`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JsonSchemaFormat {
    /// Informational.
    pub name: Option<String>,
    /// Informational.
    pub description: Option<String>,
    /// The schema.
    pub schema: Option<Value>,
    /// Objects have no properties but those that the schema names, unless it says otherwise. A schema is followed to the
    /// letter in any case.
    pub strict: Option<bool>,
}

/// One kind of tag.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StructureFields {
    /// How it begins.
    pub begin: String,
    /// What stands inside.
    #[serde(default)]
    pub schema: Option<Value>,
    /// How it ends.
    pub end: String,
}

/// `structured_outputs`: one of the first six, and how it is meant.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StructuredOutputFields {
    /// A schema, or its text.
    pub json: Option<Value>,
    /// A regular expression.
    pub regex: Option<String>,
    /// One of these.
    pub choice: Option<Vec<String>>,
    /// A grammar in Lark notation or EBNF.
    pub grammar: Option<String>,
    /// Any JSON object.
    pub json_object: Option<bool>,
    /// A structural tag, or its text.
    pub structural_tag: Option<Value>,
    /// White space between parts of JSON.
    pub whitespace_pattern: Option<String>,
    /// No white space between parts of JSON.
    pub disable_any_whitespace: Option<bool>,
    /// Objects have no properties but those that the schema names.
    pub disable_additional_properties: Option<bool>,
    /// Informational: there is one implementation and nothing to fall back on.
    pub disable_fallback: Option<bool>,
}
