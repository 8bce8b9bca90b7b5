"""Every field of every request: what shows that it does something, that it is refused, or that it changes nothing.

`test_fields.py` carries this table out against a running server, and compares it with /openapi.json: a field that is
accepted and stands nowhere here fails.
"""


class Changes:
    """The answer differs with this value, all else being `base`."""

    def __init__(self, value, **base):
        self.value, self.base = value, base


class Differ:
    """Two requests that differ in this field alone are answered differently."""

    def __init__(self, one, other, **base):
        self.one, self.other, self.base = one, other, base


class Refused:
    """A value that asks for what is not supported is refused, and the answer names the field."""

    def __init__(self, value, param=None, **base):
        self.value, self.param, self.base = value, param, base


class Informational:
    """Accepted, because clients send it; the answer is the same."""

    def __init__(self, value, **base):
        self.value, self.base = value, base


class Shown:
    """A test of this name shows what the field does."""

    def __init__(self, test):
        self.test = test


# The tokens of `a` and `b` alone.
A, B = 69, 70
HOT = {"temperature": 1.5}
ONLY_A = {"allowed_token_ids": [A]}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "f", "description": "Does it.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
FLAT = {"type": "function", **FUNCTION}
ANTHROPIC = {"name": "f", "description": "Does it.", "input_schema": SCHEMA}
FORCED = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60}
USER = {"role": "user", "content": "Hello"}


def said(**fields):
    """A conversation with one more turn."""
    return {"messages": [USER, {"role": "assistant", **fields}, USER]}


def called(**fields):
    return said(content="", tool_calls=[{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}, **fields}])


def tool(**fields):
    return {"tools": [{"type": "function", "function": {**FUNCTION, **fields}}]}


SHARED = {
    "model": Shown("a_request_reaches_the_model_that_it_names"),
    "temperature": Changes(1.5),
    "top_p": Changes(0.05, **HOT),
    "top_k": Changes(1, **HOT),
    "min_p": Changes(1.0, **HOT),
    "seed": Changes(4, **HOT),
    "max_tokens": Changes(3),
    "min_tokens": Changes(5, stop_token_ids=list(range(4, 100))),
    "ignore_eos": Changes(True, logit_bias={"2": 100}),
    "stop": Changes("aa", **ONLY_A),
    "stop_token_ids": Changes([A], **ONLY_A),
    "include_stop_str_in_output": Changes(True, stop="aa", **ONLY_A),
    "n": Changes(2),
    "frequency_penalty": Changes(2.0, max_tokens=300),
    "presence_penalty": Changes(2.0, max_tokens=300),
    "repetition_penalty": Changes(1.9, max_tokens=300),
    "logit_bias": Changes({str(B): 100}),
    "stream": Changes(True),
    "stream_options": Changes({"include_usage": True}, stream=True),
    "stream_interval": Changes(4, stream=True),
    "skip_special_tokens": Changes(False, logit_bias={"3": 100}),
    "priority": Shown("priority_orders_requests_where_the_server_was_started_so"),
    "cache_salt": Shown("test_a_salt_separates_prefix_caches"),
    "response_format": Changes({"type": "json_object"}),
    "structured_outputs": Changes({"choice": ["red"]}),
    "guided_json": Changes({"enum": ["red"]}),
    "guided_regex": Changes("xy"),
    "guided_choice": Changes(["red"]),
    "guided_grammar": Changes('root ::= "xy"'),
    "guided_whitespace_pattern": Changes("", guided_json=SCHEMA, max_tokens=60),
    "best_of": Changes(3, **HOT),
    "use_beam_search": Changes(True, n=2),
    "length_penalty": Shown("the_likeliest_choices_of_each_prompt_are_kept"),
    "prompt_logprobs": Changes(1),
    "bad_words": Changes(["a"], allowed_token_ids=[A, B], logit_bias={str(A): 50}),
    "allowed_token_ids": Changes([A]),
    "truncate_prompt_tokens": Changes(3),
    "return_token_ids": Changes(True),
    "spaces_between_special_tokens": Refused(False),
    "user": Informational("somebody"),
    "metadata": Informational({"a": "b"}),
    "store": Informational(True),
    "service_tier": Informational("auto"),
    "safety_identifier": Informational("somebody"),
    "guided_decoding_backend": Informational("xgrammar"),
    "prompt_cache_key": Informational("key"),
    "prompt_cache_retention": Informational("24h"),
    "prompt_cache_options": Informational({"mode": "auto"}),
    "request_id": Informational("one"),
    "truncation_side": Refused("right"),
}

FIELDS = {
    "ChatRequest": {
        **SHARED,
        "messages": Changes([{"role": "user", "content": "Good bye"}]),
        "max_completion_tokens": Changes(3),
        "logprobs": Changes(True),
        "top_logprobs": Changes(2, logprobs=True),
        "return_tokens_as_token_ids": Changes(True, logprobs=True),
        "add_generation_prompt": Changes(False),
        "continue_final_message": Changes(True, add_generation_prompt=False),
        "chat_template_kwargs": Changes({"mood": "glad"}),
        "chat_template": Refused("{{ messages }}"),
        "documents": Changes([{"title": "A", "text": "b"}]),
        "tools": Changes([TOOL]),
        "tool_choice": Changes("required", tools=[TOOL], max_tokens=60),
        "parallel_tool_calls": Shown("parallel_calls_can_be_switched_off"),
        "include_reasoning": Shown("reasoning_can_be_left_out"),
        "reasoning_effort": Changes("high"),
        "functions": Refused([FUNCTION]),
        "function_call": Refused({"name": "f"}),
        "add_special_tokens": Changes(True),
        "modalities": Refused(["text", "audio"]),
        "audio": Refused({"voice": "alloy"}),
        "web_search_options": Refused({}),
        "moderation": Refused({"model": "any"}),
        "verbosity": Changes("low"),
        "prediction": Informational({"type": "content", "content": "Hello"}),
        "echo": Refused(True),
    },
    "CompletionRequest": {
        **SHARED,
        "prompt": Changes("Twice"),
        "logprobs": Changes(1),
        "return_tokens_as_token_ids": Changes(True, logprobs=1),
        "echo": Changes(True),
        "add_special_tokens": Differ({"add_special_tokens": True}, {"add_special_tokens": False}),
        "suffix": Refused("the end"),
    },
    "ChatMessage": {
        "role": Differ({"messages": [{"role": "user", "content": "A"}]}, {"messages": [{"role": "system", "content": "A"}]}),
        "content": Differ(said(content="A"), said(content="B")),
        "name": Differ(said(content="A", name="Ann"), said(content="A", name="Bob")),
        "tool_calls": Differ(called(), said(content="")),
        "tool_call_id": Differ(
            *({"messages": [*called()["messages"][:2], {"role": "tool", "content": "1", **id}]} for id in ({}, {"tool_call_id": "call_1"}))
        ),
        "function_call": Refused({**said(content="A", function_call={"name": "f"})}, param="messages[1].function_call"),
        "reasoning": Differ(said(content="A", reasoning="Hm."), said(content="A")),
        "reasoning_content": Differ(said(content="A", reasoning_content="Hm."), said(content="A")),
        "refusal": Informational(said(content="A", refusal="no"), **said(content="A")),
        "annotations": Informational(said(content="A", annotations=[]), **said(content="A")),
        "audio": Informational(said(content="A", audio={"id": "1"}), **said(content="A")),
    },
    "ContentPart": {
        "type": Refused(said(content=[{"type": "image_url", "image_url": {"url": "x"}}]), param="messages[1].content"),
        "text": Differ(said(content=[{"type": "text", "text": "A"}]), said(content=[{"type": "text", "text": "B"}])),
    },
    "PastCall": {
        "id": Differ(called(), called(id="call_2")),
        "type": Refused(called(type="custom"), param="messages[1].tool_calls"),
        "function": Differ(called(), called(function={"name": "g", "arguments": "{}"})),
    },
    "PastFunction": {
        "name": Differ(called(), called(function={"name": "g", "arguments": "{}"})),
        "arguments": Differ(called(), called(function={"name": "f", "arguments": '{"a":1}'})),
    },
    "Tool": {
        "type": Refused({"tools": [{**TOOL, "type": "custom"}]}, param="tools[0].type"),
        "function": Differ(tool(), tool(name="g")),
    },
    "ToolFunction": {
        "name": Differ(tool(), tool(name="g")),
        "description": Differ(tool(), tool(description="Does that.")),
        "parameters": Differ(tool(), tool(parameters={"type": "object"})),
        "strict": Informational(tool(strict=True), **tool()),
    },
    "StreamOptionFields": {
        "include_usage": Differ({}, {"stream_options": {"include_usage": True}}, stream=True),
        "continuous_usage_stats": Differ({}, {"stream_options": {"continuous_usage_stats": True}}, stream=True),
        "include_obfuscation": Refused({"stream_options": {"include_obfuscation": True}}, param="stream_options", stream=True),
    },
    "ResponseFormat": {name: Shown("every_way_to_ask_for_a_schema_means_the_same") for name in ("type", "json_schema", "schema")}
    | {name: Shown("every_other_kind_has_its_field") for name in ("structures", "triggers", "format")},
    "JsonSchemaFormat": {
        "schema": Shown("every_way_to_ask_for_a_schema_means_the_same"),
        **{
            name: Informational(
                {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, name: value}}},
                response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
            )
            for name, value in (("name", "b"), ("description", "c"))
        },
        "strict": Shown("a_strict_schema_allows_no_properties_that_it_does_not_name"),
    },
    "StructureFields": {name: Shown("every_kind_of_constraint_is_followed") for name in ("begin", "schema", "end")},
    "StructuredOutputFields": {
        name: Shown("every_way_to_ask_for_a_schema_means_the_same")
        for name in ("json",)
    }
    | {name: Shown("every_other_kind_has_its_field") for name in ("regex", "choice", "grammar", "json_object", "structural_tag")}
    | {name: Shown("options_change_the_grammar") for name in ("whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")}
    | {
        "disable_fallback": Informational(
            {"structured_outputs": {"choice": ["red"], "disable_fallback": True}}, structured_outputs={"choice": ["red"]}
        )
    },
    "ResponsesRequest": {
        "model": SHARED["model"],
        "input": Changes("Good bye"),
        "instructions": Changes("Be brief."),
        "previous_response_id": Shown("responses_are_kept_continued_and_deleted"),
        "store": Shown("responses_are_kept_continued_and_deleted"),
        "background": Shown("background_responses_are_polled_and_cancelled"),
        "stream": Changes(True),
        "stream_options": Refused({"include_obfuscation": True}, stream=True),
        "max_output_tokens": Changes(3),
        "temperature": Changes(1.5),
        "top_p": Changes(0.05, **HOT),
        "top_k": Changes(1, **HOT),
        "min_p": Changes(1.0, **HOT),
        "seed": Changes(4, **HOT),
        "repetition_penalty": Changes(1.9, **HOT),
        "presence_penalty": Changes(2.0, max_output_tokens=300),
        "frequency_penalty": Changes(2.0, max_output_tokens=300),
        "stop": Changes(list("aeiouqrs"), max_output_tokens=300),
        "stop_token_ids": Changes([A], logit_bias={str(A): 100}),
        "include_stop_str_in_output": Changes(True, stop="aa", logit_bias={str(A): 100}),
        "logit_bias": Changes({str(B): 100}),
        "ignore_eos": Changes(True, logit_bias={"2": 100}),
        "skip_special_tokens": Changes(False, logit_bias={"3": 100}),
        "structured_outputs": Changes({"choice": ["red"]}),
        "include_reasoning": Shown("reasoning_is_left_out_of_a_response_on_request"),
        "priority": SHARED["priority"],
        "cache_salt": SHARED["cache_salt"],
        "chat_template_kwargs": Changes({"mood": "glad"}),
        "tools": Changes([FLAT]),
        "tool_choice": Changes("required", tools=[FLAT], max_output_tokens=60),
        "parallel_tool_calls": Changes(False, tools=[FLAT], tool_choice="required", max_output_tokens=200),
        "reasoning": Changes({"effort": "high"}),
        "text": Changes({"format": {"type": "json_object"}}),
        "truncation": Informational("auto"),
        "include": Informational(["reasoning.encrypted_content"]),
        "top_logprobs": Refused(2),
        "max_tool_calls": Refused(2),
        "conversation": Refused("conv_1"),
        "prompt": Refused({"id": "pmpt_1"}),
        "context_management": Refused([{"type": "compaction"}]),
        "moderation": Refused({"model": "any"}),
        "metadata": Changes({"a": "b"}),
        "user": Changes("somebody"),
        "safety_identifier": Changes("somebody"),
        "prompt_cache_key": Changes("key"),
        "client_metadata": Informational({"a": "b"}),
        "service_tier": Informational("auto"),
        "prompt_cache_retention": Informational("24h"),
        "prompt_cache_options": Informational({"mode": "auto"}),
        "request_id": Informational("one"),
    },
    "InputItem": {name: Shown("items_become_turns") for name in ("type", "role", "content", "call_id", "name", "arguments", "output", "summary")}
    | {
        name: Informational({"input": [{**USER, "type": "message", name: "x"}]}, input=[{**USER, "type": "message"}])
        for name in ("id", "status", "encrypted_content", "namespace", "phase")
    },
    "ResponseStreamOptions": {
        "include_obfuscation": Refused({"stream_options": {"include_obfuscation": True}}, param="stream_options", stream=True)
    },
    "FlatTool": {
        "type": Refused({"tools": [{**FLAT, "type": "web_search"}]}, param="tools[0].type"),
        **{
            name: Differ({"tools": [FLAT]}, {"tools": [{**FLAT, name: value}]})
            for name, value in (("name", "g"), ("description", "Other."), ("parameters", {"type": "object"}), ("strict", True))
        },
    },
    "ReasoningFields": {
        "effort": Differ({}, {"reasoning": {"effort": "high"}}),
        "summary": Informational({"reasoning": {"summary": "auto"}}),
        "generate_summary": Informational({"reasoning": {"generate_summary": "auto"}}),
    },
    "TextFields": {
        "format": Differ({}, {"text": {"format": {"type": "json_object"}}}),
        "verbosity": Differ({"text": {"verbosity": "high"}}, {"text": {"verbosity": "low"}}),
    },
    "TextFormat": {name: Shown("a_schema_or_a_forced_call_is_followed") for name in ("type", "schema")}
    | {name: Shown("a_response_has_the_shape_of_the_api") for name in ("name", "description", "strict")},
    "MessagesRequest": {
        "model": SHARED["model"],
        "max_tokens": Changes(3),
        "messages": Changes([{"role": "user", "content": "Good bye"}]),
        "system": Changes("Be brief."),
        "stop_sequences": Shown("stops_say_why"),
        "stream": Changes(True),
        "temperature": Changes(1.5),
        "top_p": Changes(0.00001, temperature=20),
        "top_k": Changes(1, temperature=20),
        "tools": Changes([ANTHROPIC]),
        "tool_choice": Changes({"type": "any"}, tools=[ANTHROPIC], max_tokens=60),
        "thinking": Changes({"type": "enabled", "budget_tokens": 1024}),
        "mcp_servers": Refused([{"url": "x"}]),
        "container": Refused("one"),
        "context_management": Refused({"edits": [{"type": "clear_tool_uses_20250919"}]}),
        "output_config": Changes({"effort": "high"}),
        "output_format": Changes({"type": "json_schema", "schema": SCHEMA}),
        "chat_template_kwargs": Changes({"mood": "glad"}),
        "cache_salt": SHARED["cache_salt"],
        "metadata": Informational({"user_id": "somebody"}),
        "service_tier": Informational("auto"),
        "speed": Informational("standard"),
        "cache_control": Informational({"type": "ephemeral"}),
    },
    "ContextManagement": {
        "edits": Refused({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, param="context_management"),
    },
    "ContextEdit": {
        "type": Refused({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, param="clear_tool_uses_20250919"),
        "keep": Informational({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}),
    },
    "CountTokensRequest": {
        "model": SHARED["model"],
        "messages": Changes([{"role": "user", "content": "Good bye"}]),
        "system": Changes("Be brief."),
        "tools": Changes([ANTHROPIC]),
        "tool_choice": Changes({"type": "none"}, tools=[ANTHROPIC]),
        "thinking": Changes({"type": "enabled", "budget_tokens": 1024}),
        "mcp_servers": Refused([{"url": "x"}]),
        "context_management": Refused({"edits": [{"type": "clear_tool_uses_20250919"}]}),
        "output_config": Changes({"effort": "high"}),
        "cache_control": Informational({"type": "ephemeral"}),
    },
    "Turn": {
        "role": Refused({"messages": [{"role": "nobody", "content": "A"}]}, param="messages[0].role"),
        "content": Differ({"messages": [{"role": "user", "content": "A"}]}, {"messages": [{"role": "user", "content": "B"}]}),
    },
    "Block": {
        name: Shown("turns_become_messages")
        for name in ("type", "text", "thinking", "id", "name", "input", "tool_use_id", "content", "is_error")
    },
    "AnthropicTool": {
        "type": Refused({"tools": [{"type": "bash_20250124", "name": "bash"}]}, param="tools[0].type"),
        **{
            name: Differ({"tools": [ANTHROPIC]}, {"tools": [{**ANTHROPIC, name: value}]})
            for name, value in (("name", "g"), ("description", "Other."), ("input_schema", {"type": "object"}))
        },
        "strict": Informational({"tools": [{**ANTHROPIC, "strict": True}]}, tools=[ANTHROPIC]),
        "defer_loading": Refused({"tools": [{**ANTHROPIC, "defer_loading": True}]}, param="tools[0].defer_loading"),
        "eager_input_streaming": Informational({"tools": [{**ANTHROPIC, "eager_input_streaming": True}]}, tools=[ANTHROPIC]),
        "cache_control": Informational({"tools": [{**ANTHROPIC, "cache_control": {"type": "ephemeral"}}]}, tools=[ANTHROPIC]),
    },
    "AnthropicToolChoice": {
        name: Shown("forced_tools_follow_their_schema") for name in ("type", "name", "disable_parallel_tool_use")
    },
    "Thinking": {
        "type": Shown("thinking_is_left_out_unless_asked_for"),
        "budget_tokens": Informational(
            {"thinking": {"type": "enabled", "budget_tokens": 2048}}, thinking={"type": "enabled", "budget_tokens": 1024}
        ),
        "display": Informational(
            {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "summarized"}},
            thinking={"type": "enabled", "budget_tokens": 1024},
        ),
    },
    "OutputConfig": {
        "format": Differ({}, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        "effort": Differ({}, {"output_config": {"effort": "high"}}),
    },
    "OutputFormat": {
        "type": Refused({"output_format": {"type": "xml", "schema": SCHEMA}}, param="output format"),
        "schema": Differ(
            *({"output_format": {"type": "json_schema", "schema": schema}} for schema in (SCHEMA, {"enum": ["red"]})), max_tokens=60
        ),
    },
    "TokenizeRequest": {
        "model": SHARED["model"],
        "prompt": Changes("Twice"),
        "messages": Differ({"prompt": None, "messages": [USER]}, {"prompt": None, "messages": [USER, USER]}),
        "tools": Differ({}, {"tools": [TOOL]}, prompt=None, messages=[USER]),
        "add_special_tokens": Differ({"add_special_tokens": True}, {"add_special_tokens": False}),
        "add_generation_prompt": Differ({}, {"add_generation_prompt": False}, prompt=None, messages=[USER]),
        "continue_final_message": Differ(
            {}, {"continue_final_message": True}, prompt=None, messages=[USER], add_generation_prompt=False
        ),
        "chat_template_kwargs": Differ({}, {"chat_template_kwargs": {"mood": "glad"}}, prompt=None, messages=[USER]),
        "return_token_strs": Changes(True),
    },
    "DetokenizeRequest": {"model": SHARED["model"], "tokens": Changes([A, B])},
    "EmbeddingsRequest": {
        "model": SHARED["model"],
        "input": Changes("Twice"),
        "encoding_format": Changes("base64"),
        "dimensions": Changes(8),
        "pooling": Changes("mean"),
        "normalize": Changes(False),
        "add_special_tokens": Differ({"add_special_tokens": True}, {"add_special_tokens": False}),
        "truncate_prompt_tokens": Changes(2),
        "priority": SHARED["priority"],
        "user": Informational("somebody"),
    },
    "ScoreRequest": {
        "model": SHARED["model"],
        "text_1": Changes("Thrice"),
        "text_2": Changes("Thrice"),
        "pooling": Changes("mean"),
        "truncate_prompt_tokens": Changes(2),
        "priority": SHARED["priority"],
        "user": Informational("somebody"),
    },
    "RerankRequest": {
        "model": SHARED["model"],
        "query": Changes("Thrice"),
        "documents": Changes(["Thrice"]),
        "top_n": Changes(1),
        "pooling": Changes("mean"),
        "truncate_prompt_tokens": Changes(2),
        "priority": SHARED["priority"],
        "user": Informational("somebody"),
    },
    "InvocationRequest": {
        name: Shown("an_invocation_goes_to_the_endpoint_that_its_body_is_for")
        for name in ("messages", "prompt", "input", "query", "text_1")
    },
    "GenerateRequest": {
        "prompt": Changes("Twice"),
        "max_tokens": Changes(3),
        "temperature": Changes(2.0, top_p=1.0),
        "top_p": Changes(0.001, temperature=5.0),
        "stop": Shown("plain_endpoints_answer_in_the_documents_shapes"),
    },
    "BatchRequest": {
        "prompts": Changes(["Twice", "Thrice"]),
        "max_tokens": Changes(3),
        "temperature": Changes(2.0),
    },
    "LoadRequest": {},
    "UnloadRequest": {},
}
