//! What clients see on the wire.

use serde_json::{Value, json};

use crate::support::{END, Server, Setup, chat, completion, normalized, repeats, says};

fn usage(prompt: u64, completion: u64) -> Value {
    json!({
        "prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

#[tokio::test]
async fn chat_answers_in_openai_shape() {
    let server = Server::start(Setup::default()).await;
    let reply = server.post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let body = reply.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-")));
    assert!(body["vllm_stats"]["inference_time_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    assert!(body["vllm_stats"]["tokens_per_second"].as_f64().is_some_and(|speed| speed > 0.0));
    // <|user|> H i <|assistant|> in; eleven letters and the end out.
    let expected = json!({
        "id": "ID", "object": "chat.completion", "created": 0, "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello world"}, "logprobs": null,
                     "finish_reason": "stop", "stop_reason": null}],
        "usage": usage(4, 12), "vllm_stats": "STATS",
    });
    assert_eq!(normalized(body), expected);
}

#[tokio::test]
async fn chat_streams_role_deltas_finish_and_done() {
    let server = Server::start(Setup { script: says("Hé"), ..Setup::default() }).await;
    let reply = server.post("/v1/chat/completions", &chat(json!({"stream": true}))).await;
    let chunk = |delta: Value, finish: Value| {
        json!({"id": "ID", "object": "chat.completion.chunk", "created": 0, "model": "tiny",
               "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]})
    };
    let mut last = chunk(json!({}), json!("stop"));
    last["choices"][0]["stop_reason"] = Value::Null;
    let expected = vec![
        chunk(json!({"role": "assistant", "content": ""}), Value::Null),
        chunk(json!({"content": "H"}), Value::Null),
        // Two tokens make this letter; the first alone shows nothing.
        chunk(json!({"content": "é"}), Value::Null),
        last,
        json!("[DONE]"),
    ];
    let events: Vec<_> = reply.events().into_iter().map(normalized).collect();
    assert_eq!(events, expected);
}

#[tokio::test]
async fn include_usage_adds_one_chunk_and_null_elsewhere() {
    let server = Server::start(Setup { script: says("ab"), ..Setup::default() }).await;
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = server.post("/v1/chat/completions", &chat(extra)).await.events();
    let (last, others) = events[..events.len() - 1].split_last().expect("chunks");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], usage(4, 3));
    assert!(last["vllm_stats"]["tokens_per_second"].is_number());
    assert!(others.iter().all(|event| event.get("usage") == Some(&Value::Null)), "{others:?}");
}

#[tokio::test]
async fn continuous_usage_is_on_every_chunk() {
    let server = Server::start(Setup { script: says("ab"), step_ms: 5, ..Setup::default() }).await;
    let extra = json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let events = server.post("/v1/completions", &completion(extra)).await.events();
    let counts: Vec<_> = events.iter().filter_map(|event| event["usage"]["completion_tokens"].as_u64()).collect();
    assert_eq!(counts.len(), events.len() - 1);
    assert!(counts.is_sorted() && counts.last() == Some(&3), "{counts:?}");
}

#[tokio::test]
async fn completion_answers_in_openai_shape() {
    let server = Server::start(Setup::default()).await;
    let body = server.post("/v1/completions", &completion(json!({"max_tokens": 5}))).await.json();
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("cmpl-")));
    let expected = json!({
        "id": "ID", "object": "text_completion", "created": 0, "model": "tiny",
        "choices": [{"index": 0, "text": "Hello", "logprobs": null, "finish_reason": "length", "stop_reason": null}],
        "usage": usage(4, 5), "vllm_stats": "STATS",
    });
    assert_eq!(normalized(body), expected);
}

#[tokio::test]
async fn completions_default_to_sixteen_tokens() {
    let server = Server::start(Setup { script: repeats(b'x'), ..Setup::default() }).await;
    let body = server.post("/v1/completions", &completion(json!({}))).await.json();
    assert_eq!(body["choices"][0]["text"], "x".repeat(16));
}

#[tokio::test]
async fn completion_stream_carries_text() {
    let server = Server::start(Setup { script: says("ab"), ..Setup::default() }).await;
    let events = server.post("/v1/completions", &completion(json!({"stream": true}))).await.events();
    let texts: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts, "ab");
    assert_eq!(events[0]["object"], "text_completion");
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(events[events.len() - 1], "[DONE]");
}

#[tokio::test]
async fn several_prompts_and_choices_are_numbered() {
    let server = Server::start(Setup::default()).await;
    let body = json!({"prompt": ["a", "bc"], "n": 2, "max_tokens": 3});
    let body = server.post("/v1/completions", &body).await.json();
    let choices = body["choices"].as_array().expect("choices");
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64()).collect::<Vec<_>>(), [0, 1, 2, 3].map(Some));
    assert!(choices.iter().all(|choice| choice["text"] == "Hel"));
    assert_eq!(body["usage"], usage(3, 12));
    assert_eq!(body["model"], "tiny");
}

#[tokio::test]
async fn prompts_may_be_tokens() {
    let server = Server::start(Setup::default()).await;
    for prompt in [json!([65, 66]), json!([[65, 66]])] {
        let body =
            server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 2, "echo": true})).await.json();
        assert_eq!(body["choices"][0]["text"], "ABHe");
        assert_eq!(body["usage"]["prompt_tokens"], 2);
    }
}

#[tokio::test]
async fn echo_begins_with_the_prompt_streamed_too() {
    let server = Server::start(Setup { script: says("!"), ..Setup::default() }).await;
    let body = server.post("/v1/completions", &completion(json!({"echo": true}))).await.json();
    assert_eq!(body["choices"][0]["text"], "Once!");
    let events = server.post("/v1/completions", &completion(json!({"echo": true, "stream": true}))).await.events();
    let texts: Vec<_> = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts[0], "Once");
    assert_eq!(texts.concat(), "Once!");
}

#[tokio::test]
async fn stop_strings_end_the_text_and_are_named() {
    let server = Server::start(Setup { script: says("one two three"), ..Setup::default() }).await;
    let body = server.post("/v1/chat/completions", &chat(json!({"stop": ["zzz", " t"]}))).await.json();
    assert_eq!(body["choices"][0]["message"]["content"], "one");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][0]["stop_reason"], " t");
    assert_eq!(body["usage"]["completion_tokens"], 5);
    let extra = json!({"stop": "two", "include_stop_str_in_output": true, "stream": true});
    assert_eq!(server.post("/v1/chat/completions", &chat(extra)).await.streamed_text(), "one two");
    server.wait_all_free(std::time::Duration::from_secs(5)).await;
    assert_eq!(
        server.metric("vllm:request_success_total{model_name=\"tiny\",engine=\"0\",finished_reason=\"stop\"}").await,
        2.0
    );
}

#[tokio::test]
async fn stop_strings_end_nothing_before_min_tokens() {
    let server = Server::start(Setup { script: says("one two one two"), ..Setup::default() }).await;
    let text = |extra: Value| {
        let server = &server;
        async move {
            let body = server.post("/v1/chat/completions", &chat(extra)).await.json();
            let choice = &body["choices"][0];
            (choice["message"]["content"].as_str().expect("a text").to_owned(), choice["stop_reason"].clone())
        }
    };
    for (min_tokens, shown) in [(0, "one "), (6, "one "), (7, "one two one ")] {
        let stopped = text(json!({"stop": "two", "min_tokens": min_tokens})).await;
        assert_eq!(stopped, (shown.to_owned(), json!("two")), "min_tokens {min_tokens}");
    }
    let ended = text(json!({"stop": "two", "min_tokens": 15})).await;
    assert_eq!(ended, ("one two one two".to_owned(), Value::Null));
}

#[tokio::test]
async fn a_stop_token_that_is_shown_stands_after_what_was_held_back() {
    let server = Server::start(Setup { script: says("see tw"), ..Setup::default() }).await;
    for stream in [false, true] {
        let extra =
            json!({"stop": "two", "include_stop_str_in_output": true, "skip_special_tokens": false, "stream": stream});
        let reply = server.post("/v1/chat/completions", &chat(extra)).await;
        let text = match stream {
            true => reply.streamed_text(),
            false => reply.json()["choices"][0]["message"]["content"].as_str().expect("a text").to_owned(),
        };
        assert_eq!(text, "see tw<|end|>");
    }
}

#[tokio::test]
async fn a_stop_string_of_one_choice_does_not_end_another() {
    let server = Server::start(Setup { script: says("abc"), ..Setup::default() }).await;
    let body = server.post("/v1/chat/completions", &chat(json!({"stop": "b", "n": 3}))).await.json();
    let texts: Vec<_> = body["choices"].as_array().expect("choices").iter().map(|c| &c["message"]["content"]).collect();
    assert_eq!(texts, ["a", "a", "a"]);
}

#[tokio::test]
async fn what_could_have_become_a_stop_string_is_text_at_the_end() {
    let server = Server::start(Setup { script: says("ab"), ..Setup::default() }).await;
    for stream in [false, true] {
        let reply = server.post("/v1/chat/completions", &chat(json!({"stop": "bc", "stream": stream}))).await;
        let text =
            if stream { reply.streamed_text() } else { reply.json()["choices"][0]["message"]["content"].to_string() };
        assert_eq!(text.trim_matches('"'), "ab");
    }
}

#[tokio::test]
async fn a_character_cut_off_by_the_length_is_replaced() {
    let server = Server::start(Setup { script: says("aé"), ..Setup::default() }).await;
    let body = server.post("/v1/completions", &completion(json!({"max_tokens": 2}))).await.json();
    assert_eq!(body["choices"][0]["text"], "a\u{fffd}");
    assert_eq!(body["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_final_message_is_continued() {
    let server = Server::start(Setup::default()).await;
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}]);
    let body = json!({"messages": messages, "continue_final_message": true, "max_tokens": 2});
    let body = server.post("/v1/chat/completions", &body).await.json();
    assert_eq!(body["usage"]["prompt_tokens"], 8);
    assert_eq!(body["choices"][0]["message"]["content"], "He");
}

#[tokio::test]
async fn stop_tokens_are_named_by_number() {
    let server = Server::start(Setup { script: says("abc"), ..Setup::default() }).await;
    let body = server.post("/v1/completions", &completion(json!({"stop_token_ids": [b'c']}))).await.json();
    assert_eq!(body["choices"][0]["text"], "ab");
    assert_eq!(body["choices"][0]["stop_reason"], b'c');
}

#[tokio::test]
async fn chat_logprobs_have_tokens_and_bytes() {
    let server = Server::start(Setup { script: says("ab"), ..Setup::default() }).await;
    let body = server.post("/v1/chat/completions", &chat(json!({"logprobs": true, "top_logprobs": 2}))).await.json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().expect("log-probabilities").clone();
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["bytes"], json!([97]));
    assert!(content[0]["logprob"].is_number());
    assert_eq!(content[0]["top_logprobs"].as_array().map(Vec::len), Some(2));
    assert_eq!(content[2]["token"], "<|end|>");
    let plain = server.post("/v1/chat/completions", &chat(json!({"logprobs": true}))).await.json();
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn completion_logprobs_are_parallel_lists() {
    let server = Server::start(Setup { script: says("ab"), ..Setup::default() }).await;
    for stream in [false, true] {
        let reply = server.post("/v1/completions", &completion(json!({"logprobs": 1, "stream": stream}))).await;
        let bodies = if stream { reply.events() } else { vec![reply.json()] };
        let all = |name: &str| -> Vec<Value> {
            let lists = bodies.iter().filter_map(|body| body["choices"][0]["logprobs"][name].as_array());
            lists.flatten().cloned().collect()
        };
        assert_eq!(all("tokens"), ["a", "b", "<|end|>"]);
        assert_eq!(all("text_offset"), [0, 1, 2]);
        assert_eq!(all("token_logprobs").len(), 3);
        assert_eq!(all("top_logprobs").len(), 3);
    }
}

#[tokio::test]
async fn the_token_of_a_place_is_among_its_top_logprobs() {
    let server = Server::start(Setup { script: says("ab"), ..Setup::default() }).await;
    for (stream, echo) in [(false, false), (true, false), (false, true)] {
        // None of the likeliest is asked for, so that the token is none of them.
        let asked = json!({"logprobs": 0, "stream": stream, "echo": echo});
        let reply = server.post("/v1/completions", &completion(asked)).await;
        let bodies = if stream { reply.events() } else { vec![reply.json()] };
        let places: Vec<(Value, Value)> = bodies
            .iter()
            .map(|body| &body["choices"][0]["logprobs"])
            .filter_map(|logprobs| Some((logprobs["tokens"].as_array()?, logprobs["top_logprobs"].as_array()?)))
            .flat_map(|(tokens, tops)| tokens.iter().cloned().zip(tops.iter().cloned()))
            .collect();
        assert_eq!(places.len(), if echo { 7 } else { 3 });
        for (token, top) in places.iter().skip(usize::from(echo)) {
            assert_eq!(top, &json!({token.as_str().expect("text"): -0.5}));
        }
    }
}

#[tokio::test]
async fn seeds_repeat_and_choices_differ() {
    let script = firebrick_engine::Script::Hash { vocab_size: 128 };
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let body = json!({"prompt": "a", "seed": 7, "n": 2, "max_tokens": 12, "ignore_eos": true});
    let first = server.post("/v1/completions", &body).await.json();
    let second = server.post("/v1/completions", &body).await.json();
    assert_eq!(first["choices"], second["choices"]);
    assert_ne!(first["choices"][0]["text"], first["choices"][1]["text"]);
}

#[tokio::test]
async fn a_repeated_prompt_reports_cached_tokens() {
    let server = Server::start(Setup { prefix_caching: true, ..Setup::default() }).await;
    let body = json!({"prompt": "p".repeat(64), "max_tokens": 2});
    server.post("/v1/completions", &body).await;
    let usage = server.post("/v1/completions", &body).await.json()["usage"].clone();
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64().is_some_and(|cached| cached >= 48), "{usage}");
    assert!(server.metric("vllm:prefix_cache_hits_total").await >= 48.0);
}

#[tokio::test]
async fn special_tokens_are_left_out_unless_kept() {
    let script = firebrick_engine::Script::Tokens(vec![97, 257, 98, END]);
    let server = Server::start(Setup { script, ..Setup::default() }).await;
    let body = server.post("/v1/completions", &completion(json!({}))).await.json();
    assert_eq!(body["choices"][0]["text"], "ab");
    let body = server.post("/v1/completions", &completion(json!({"skip_special_tokens": false}))).await.json();
    assert_eq!(body["choices"][0]["text"], "a<|user|>b");
}

#[tokio::test]
async fn informational_parameters_are_accepted() {
    let server = Server::start(Setup::default()).await;
    let extra = json!({
        "user": "u", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "response_format": {"type": "text"},
        "tools": [], "tool_choice": "none", "top_k": -1, "logit_bias": {"97": -100}, "priority": 0, "cache_salt": "s",
        "modalities": ["text"], "parallel_tool_calls": true, "best_of": 1, "seed": -5, "max_completion_tokens": 4,
        "chat_template_kwargs": {"enable_thinking": false}, "min_p": 0.1, "repetition_penalty": 1.1, "functions": null,
        "prediction": {"type": "content", "content": "x"}, "verbosity": "medium", "audio": null, "web_search_options": null,
        "prompt_cache_retention": "24h", "request_id": "r", "truncation_side": "left", "documents": [], "echo": false,
    });
    let reply = server.post("/v1/chat/completions", &chat(extra)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test]
async fn content_may_come_in_parts() {
    let server = Server::start(Setup::default()).await;
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let body = json!({"messages": [{"role": "user", "content": parts}]});
    let body = server.post("/v1/chat/completions", &body).await.json();
    assert_eq!(body["usage"]["prompt_tokens"], 5);
}

#[tokio::test]
async fn plain_endpoints_answer_in_the_documents_shapes() {
    let server = Server::start(Setup::default()).await;
    let body = server.post("/generate", &json!({"prompt": "Hi", "stop": ["w"]})).await.json();
    assert_eq!(body, json!({"text": "Hello ", "tokens_generated": 7, "finish_reason": "stop"}));
    let body = server.post("/batch_generate", &json!({"prompts": ["a", "b"], "max_tokens": 4})).await.json();
    assert_eq!(body, json!({"results": [{"text": "Hell", "tokens": 4}, {"text": "Hell", "tokens": 4}]}));
    let body = server.get("/model_info").await.json();
    assert_eq!(body, json!({"model": "tiny", "max_model_len": 4096, "tensor_parallel_size": 1}));
    let reply = server.post("/generate", &json!({"prompt": "Hi", "max_tokens": -1})).await;
    assert_eq!((reply.status, reply.json()), (400, json!({"detail": "max_tokens is -1, it must be at least 1"})));
}

#[tokio::test]
async fn models_lists_every_served_name() {
    let server = Server::start(Setup::default()).await;
    let body = server.get("/v1/models").await.json();
    assert_eq!(body["object"], "list");
    let names: Vec<_> = body["data"].as_array().expect("models").iter().map(|card| &card["id"]).collect();
    assert_eq!(names, ["tiny", "org/tiny"]);
    let card = &body["data"][0];
    assert_eq!(
        (&card["object"], &card["max_model_len"], &card["parent"]),
        (&json!("model"), &json!(4096), &Value::Null)
    );
    assert_eq!(card["permission"][0]["object"], "model_permission");
    assert_eq!(server.get("/v1/models/org/tiny").await.json()["id"], "org/tiny");
    assert_eq!(server.get("/v1/models/other").await.status, 404);
}

#[tokio::test]
async fn tokenize_and_detokenize_are_inverse() {
    let server = Server::start(Setup::default()).await;
    let body = server.post("/tokenize", &json!({"prompt": "Hé", "return_token_strs": true})).await.json();
    assert_eq!(body["tokens"], json!([72, 195, 169]));
    assert_eq!((&body["count"], &body["max_model_len"]), (&json!(3), &json!(4096)));
    assert_eq!(body["token_strs"].as_array().map(Vec::len), Some(3));
    let body = server.post("/detokenize", &json!({"tokens": [72, 195, 169]})).await.json();
    assert_eq!(body, json!({"prompt": "Hé"}));
    let messages = json!({"messages": [{"role": "user", "content": "Hi"}]});
    assert_eq!(server.post("/tokenize", &messages).await.json()["tokens"], json!([257, 72, 105, 258]));
    assert_eq!(server.post("/detokenize", &json!({"tokens": [9999]})).await.status, 400);
}

#[tokio::test]
async fn metrics_speak_prometheus_and_json() {
    let server = Server::start(Setup::default()).await;
    server.post("/v1/chat/completions", &chat(json!({}))).await;
    let reply = server.get("/metrics").await;
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = reply.text();
    let names = [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:cache_config_info",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_sum",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_sum",
        "vllm:request_prefill_time_seconds_sum",
        "vllm:request_decode_time_seconds_sum",
        "vllm:request_max_num_generation_tokens_sum",
        "vllm:iteration_tokens_total_bucket",
        "vllm_requests_total",
        "vllm_request_duration_seconds_bucket",
        "vllm_tokens_generated_total",
        "vllm_active_requests",
        "vllm_gpu_memory_bytes",
    ];
    for name in names {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().expect("a value");
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
    }
    assert_eq!(server.metric("vllm:generation_tokens_total").await, 12.0);
    assert_eq!(server.metric("vllm:prompt_tokens_total").await, 4.0);
    assert_eq!(server.metric("vllm:time_to_first_token_seconds_count").await, 1.0);
    assert_eq!(server.metric("vllm:inter_token_latency_seconds_count").await, 11.0);
    assert_eq!(server.metric("vllm_requests_total{model=\"tiny\",status=\"success\"}").await, 1.0);
    let json = server.send("GET", "/metrics", &[("Accept", "application/json")], b"").await.json();
    assert_eq!(json, server.get("/metrics.json").await.json());
    assert_eq!((&json["model"], &json["gpu_name"]), (&json!("tiny"), &json!("scripted")));
    assert_eq!((&json["gpu_memory_allocated_gb"], &json["gpu_memory_reserved_gb"]), (&json!(1.0), &json!(2.0)));
}

#[tokio::test]
async fn request_ids_are_echoed_or_made() {
    let server = Server::start(Setup::default()).await;
    let reply = server.send("GET", "/version", &[("X-Request-Id", "abc-1")], b"").await;
    assert_eq!(reply.header("x-request-id"), Some("abc-1"));
    let reply = server.send("GET", "/version", &[("X-Request-Id", &"x".repeat(500))], b"").await;
    assert_eq!(reply.header("x-request-id").map(str::len), Some(32));
}
