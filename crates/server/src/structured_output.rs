//! What a client's request for structured output means: exactly one grammar, or none.

use firebrick_text::{GrammarSource, StructuralTag, Structure, Whitespace};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::closed_schema::close_objects;
use crate::error::ApiError;
use crate::openai::{JsonSchemaFormat, ResponseFormat, SamplingFields, StructureFields, StructuredOutputFields};
use crate::request_json::RequestJson;

/// A grammar and the name of the field that asked for it.
pub struct AskedGrammar {
    /// The field, as errors name it.
    pub field: &'static str,
    /// What the text must match.
    pub source: GrammarSource,
}

/// The grammar that a request asks for; several are refused.
pub fn asked_grammar(fields: &mut SamplingFields) -> Result<Option<AskedGrammar>, ApiError> {
    let asked = [response_format(fields)?, structured_outputs(fields)?, guided(fields)?];
    let mut asked = asked.into_iter().flatten();
    let (first, second) = (asked.next(), asked.next());
    if let (Some(first), Some(second)) = (&first, second) {
        let message = format!("{} and {} exclude each other: an answer follows one grammar", first.field, second.field);
        return Err(ApiError::parameter(second.field, message));
    }
    Ok(first)
}

fn response_format(fields: &mut SamplingFields) -> Result<Option<AskedGrammar>, ApiError> {
    const FIELD: &str = "response_format";
    let Some(format) = fields.response_format.take() else { return Ok(None) };
    let misplaced = |name: &str| {
        Err(ApiError::parameter(FIELD, format!("{name} does not belong to a {FIELD} of type {}", format.r#type)))
    };
    match &format {
        ResponseFormat { json_schema: Some(_), r#type, .. } if r#type != "json_schema" => {
            return misplaced("json_schema");
        }
        ResponseFormat { schema: Some(_), r#type, .. } if r#type != "json_object" => return misplaced("schema"),
        ResponseFormat { structures: Some(_), r#type, .. } if r#type != "structural_tag" => {
            return misplaced("structures");
        }
        ResponseFormat { triggers: Some(_), r#type, .. } if r#type != "structural_tag" => return misplaced("triggers"),
        ResponseFormat { format: Some(_), r#type, .. } if r#type != "structural_tag" => return misplaced("format"),
        _ => {}
    }
    let source = match format.r#type.as_str() {
        "text" => return Ok(None),
        "json_object" => json_source(format.schema.unwrap_or_else(any_object), None),
        "json_schema" => {
            let JsonSchemaFormat { schema, strict, .. } = format.json_schema.unwrap_or_default();
            let missing = || ApiError::parameter(FIELD, "response_format.json_schema.schema is missing");
            let mut schema = schema.ok_or_else(missing)?;
            if strict == Some(true) {
                close_objects(&mut schema);
            }
            json_source(schema, None)
        }
        "structural_tag" => structural_tag(FIELD, format)?,
        other => {
            let shown: String = other.chars().take(40).collect();
            let message = format!(
                "response_format.type is {shown:?}; text, json_object, json_schema and structural_tag are supported"
            );
            return Err(ApiError::parameter(FIELD, message));
        }
    };
    Ok(Some(AskedGrammar { field: FIELD, source }))
}

fn structured_outputs(fields: &mut SamplingFields) -> Result<Option<AskedGrammar>, ApiError> {
    const FIELD: &str = "structured_outputs";
    let Some(asked) = fields.structured_outputs.take() else { return Ok(None) };
    let whitespace = match (asked.disable_any_whitespace.unwrap_or(false), asked.whitespace_pattern) {
        (true, Some(_)) => {
            let message = "structured_outputs: disable_any_whitespace and whitespace_pattern exclude each other";
            return Err(ApiError::parameter(FIELD, message));
        }
        (true, None) => Some(Whitespace::None),
        (false, pattern) => pattern.map(Whitespace::Pattern),
    };
    let closed = asked.disable_additional_properties.unwrap_or(false);
    let StructuredOutputFields { json, regex, choice, grammar, json_object, structural_tag, .. } = asked;
    let of_json = |schema| {
        let mut schema = schema_of(FIELD, schema)?;
        if closed {
            close_objects(&mut schema);
        }
        Ok::<_, ApiError>(json_source(schema, whitespace.clone()))
    };
    let sources = [
        json.map(of_json).transpose()?,
        json_object.filter(|asked| *asked).map(|_| json_source(any_object(), whitespace.clone())),
        regex.map(GrammarSource::Regex),
        choice.map(GrammarSource::Choice),
        grammar.map(GrammarSource::Grammar),
        structural_tag.map(|tag| structural_tag_of(FIELD, tag)).transpose()?,
    ];
    let is_json = matches!(sources, [Some(_), ..] | [_, Some(_), ..]);
    if !is_json && (whitespace.is_some() || closed) {
        let message = "structured_outputs: options of white space and properties need json or json_object";
        return Err(ApiError::parameter(FIELD, message));
    }
    let mut sources = sources.into_iter().flatten();
    match (sources.next(), sources.next()) {
        (Some(source), None) => Ok(Some(AskedGrammar { field: FIELD, source })),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => {
            let message = "structured_outputs: json, json_object, regex, choice, grammar and structural_tag exclude \
                           each other";
            Err(ApiError::parameter(FIELD, message))
        }
    }
}

/// The older fields of vLLM.
fn guided(fields: &mut SamplingFields) -> Result<Option<AskedGrammar>, ApiError> {
    let whitespace = fields.guided_whitespace_pattern.take().map(Whitespace::Pattern);
    let has_whitespace = whitespace.is_some();
    let json = match fields.guided_json.take() {
        Some(schema) => Some(json_source(schema_of("guided_json", schema)?, whitespace)),
        None if has_whitespace => {
            let message = "guided_whitespace_pattern needs guided_json";
            return Err(ApiError::parameter("guided_whitespace_pattern", message));
        }
        None => None,
    };
    let asked = [
        ("guided_json", json),
        ("guided_regex", fields.guided_regex.take().map(GrammarSource::Regex)),
        ("guided_choice", fields.guided_choice.take().map(GrammarSource::Choice)),
        ("guided_grammar", fields.guided_grammar.take().map(GrammarSource::Grammar)),
    ];
    let mut asked = asked.into_iter().filter_map(|(field, source)| Some(AskedGrammar { field, source: source? }));
    let (first, second) = (asked.next(), asked.next());
    match (first, second) {
        (Some(first), Some(second)) => {
            let message = format!("{} and {} exclude each other", first.field, second.field);
            Err(ApiError::parameter(second.field, message))
        }
        (first, _) => Ok(first),
    }
}

fn json_source(schema: Value, whitespace: Option<Whitespace>) -> GrammarSource {
    GrammarSource::Json { schema, whitespace }
}

fn any_object() -> Value {
    json!({"type": "object"})
}

/// A schema, which some clients send as text.
fn schema_of(field: &'static str, schema: Value) -> Result<Value, ApiError> {
    let Value::String(text) = schema else { return Ok(schema) };
    serde_json::from_str(&text)
        .map_err(|error| ApiError::parameter(field, format!("{field}: the schema is not JSON: {error}")))
}

fn structural_tag_of(field: &'static str, tag: Value) -> Result<GrammarSource, ApiError> {
    let parsed = match tag {
        Value::String(text) => ResponseFormat::deserialize(RequestJson(&mut serde_json::Deserializer::from_str(&text))),
        tag => ResponseFormat::deserialize(RequestJson(tag)),
    };
    structural_tag(
        field,
        parsed.map_err(|error| ApiError::parameter(field, format!("{field}.structural_tag: {error}")))?,
    )
}

fn structural_tag(field: &'static str, format: ResponseFormat) -> Result<GrammarSource, ApiError> {
    if format.format.is_some() {
        let message = format!("{field}: structural tags are supported with structures and triggers, not with format");
        return Err(ApiError::parameter(field, message));
    }
    let missing = |name: &str| ApiError::parameter(field, format!("{field}: a structural tag needs {name}"));
    let structures = format.structures.ok_or_else(|| missing("structures"))?;
    let structure =
        |StructureFields { begin, schema, end }| Structure { begin, schema: schema.unwrap_or(json!({})), end };
    Ok(GrammarSource::StructuralTag(StructuralTag {
        structures: structures.into_iter().map(structure).collect(),
        triggers: format.triggers.ok_or_else(|| missing("triggers"))?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::parse_json;
    use crate::openai::CompletionRequest;

    fn asked(body: Value) -> Result<Option<AskedGrammar>, ApiError> {
        let mut body: CompletionRequest = parse_json(body.to_string().as_bytes())?;
        asked_grammar(&mut body.take_sampling())
    }

    fn source(body: Value) -> GrammarSource {
        let shown = body.to_string();
        asked(body).unwrap_or_else(|error| panic!("{shown}: {error:?}")).expect("a grammar").source
    }

    fn refused(body: Value) -> (String, String) {
        let shown = body.to_string();
        let Err(error) = asked(body) else { panic!("{shown} must be refused") };
        (error.param.unwrap_or_default(), error.message)
    }

    #[test]
    fn every_way_to_ask_for_a_schema_means_the_same() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
        let expected = GrammarSource::Json { schema: schema.clone(), whitespace: None };
        for body in [
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": false}}}),
            json!({"response_format": {"type": "json_object", "schema": schema}}),
            json!({"structured_outputs": {"json": schema}}),
            json!({"structured_outputs": {"json": schema.to_string()}}),
            json!({"guided_json": schema}),
            json!({"guided_json": schema.to_string()}),
        ] {
            assert_eq!(source(body), expected);
        }
    }

    #[test]
    fn a_strict_schema_allows_no_properties_that_it_does_not_name() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "object"}}});
        let closed = json!({"type": "object", "properties": {"a": {"type": "object", "additionalProperties": false}},
                            "additionalProperties": false});
        for (strict, expected) in [(json!(true), &closed), (json!(false), &schema), (Value::Null, &schema)] {
            let json_schema = json!({"name": "x", "schema": schema, "strict": strict});
            let found = source(json!({"response_format": {"type": "json_schema", "json_schema": json_schema}}));
            assert_eq!(found, json_source(expected.clone(), None));
        }
    }

    #[test]
    fn every_other_kind_has_its_field() {
        assert_eq!(source(json!({"response_format": {"type": "json_object"}})), json_source(any_object(), None));
        assert_eq!(source(json!({"structured_outputs": {"json_object": true}})), json_source(any_object(), None));
        let choices = GrammarSource::Choice(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(source(json!({"structured_outputs": {"choice": ["a", "b"]}})), choices);
        assert_eq!(source(json!({"guided_choice": ["a", "b"]})), choices);
        assert_eq!(source(json!({"structured_outputs": {"regex": "a+"}})), GrammarSource::Regex("a+".to_owned()));
        assert_eq!(source(json!({"guided_regex": "a+"})), GrammarSource::Regex("a+".to_owned()));
        assert_eq!(source(json!({"structured_outputs": {"grammar": "g"}})), GrammarSource::Grammar("g".to_owned()));
        assert_eq!(source(json!({"guided_grammar": "g"})), GrammarSource::Grammar("g".to_owned()));
        let tag = json!({"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}],
                         "triggers": ["<a"]});
        let expected = source(json!({ "response_format": tag }));
        assert!(matches!(expected, GrammarSource::StructuralTag(_)));
        assert_eq!(source(json!({"structured_outputs": {"structural_tag": tag}})), expected);
        assert_eq!(source(json!({"structured_outputs": {"structural_tag": tag.to_string()}})), expected);
    }

    #[test]
    fn neutral_fields_ask_for_nothing() {
        for body in [
            json!({}),
            json!({"response_format": {"type": "text"}}),
            json!({"response_format": null, "structured_outputs": null, "guided_json": null}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"json_object": false}}),
        ] {
            assert!(asked(body.clone()).is_ok_and(|asked| asked.is_none()), "{body}");
        }
    }

    #[test]
    fn options_change_the_grammar() {
        let with = |options: Value| {
            let mut fields = json!({"json": {"type": "object", "properties": {"a": {"properties": {}}}}});
            fields.as_object_mut().expect("an object").extend(options.as_object().cloned().expect("an object"));
            source(json!({ "structured_outputs": fields }))
        };
        let GrammarSource::Json { whitespace, .. } = with(json!({"disable_any_whitespace": true})) else { panic!() };
        assert_eq!(whitespace, Some(Whitespace::None));
        let GrammarSource::Json { whitespace, .. } = with(json!({"whitespace_pattern": " ?"})) else { panic!() };
        assert_eq!(whitespace, Some(Whitespace::Pattern(" ?".to_owned())));
        let GrammarSource::Json { schema, .. } = with(json!({"disable_additional_properties": true})) else { panic!() };
        let closed = json!({"type": "object", "additionalProperties": false,
                            "properties": {"a": {"properties": {}, "additionalProperties": false}}});
        assert_eq!(schema, closed);
    }

    #[test]
    fn contradictions_and_unknown_kinds_are_refused_by_name() {
        let format = json!({"type": "json_object"});
        assert_eq!(refused(json!({"response_format": format, "guided_regex": "a"})).0, "guided_regex");
        assert_eq!(refused(json!({"guided_choice": ["a"], "guided_regex": "a"})).0, "guided_choice");
        assert_eq!(refused(json!({"structured_outputs": {"regex": "a", "choice": ["a"]}})).0, "structured_outputs");
        assert!(refused(json!({"response_format": {"type": "xml"}})).1.contains("\"xml\""));
        assert!(refused(json!({"response_format": {"type": "json_schema"}})).1.contains("schema is missing"));
        assert!(refused(json!({"response_format": {"type": "text", "json_schema": {}}})).1.contains("does not belong"));
        assert!(
            refused(json!({"response_format": {"type": "structural_tag", "format": {}}})).1.contains("not with format")
        );
        assert!(
            refused(json!({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}})).1.contains("need json")
        );
        assert!(refused(json!({"structured_outputs": {"json": "{"}})).1.contains("not JSON"));
        assert!(refused(json!({"guided_whitespace_pattern": " "})).1.contains("needs guided_json"));
        assert!(refused(json!({"structured_outputs": {"jsn": {}}})).1.contains("jsn"));
    }
}
