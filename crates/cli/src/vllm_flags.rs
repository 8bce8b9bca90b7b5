//! vLLM's flags that mean nothing here, in one table: those that can be ignored without harm, and those whose absence
//! would mislead, which are refused. Flags that work are ordinary arguments of `serve`.

use std::ffi::OsString;

use crate::failure::Failure;

/// What follows a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// Nothing: a switch, or `=true` and `=false`.
    Nothing,
    /// One value.
    Value,
    /// Values up to the next flag.
    Values,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Dropped with one warning that gives this reason.
    Ignored(&'static str),
    /// Refused with this reason, unless its value is one of those that ask for nothing.
    Refused(&'static str, &'static [&'static str]),
}

struct Foreign {
    name: &'static str,
    takes: Takes,
    fate: Fate,
}

const fn ignored(name: &'static str, takes: Takes, reason: &'static str) -> Foreign {
    Foreign { name, takes, fate: Fate::Ignored(reason) }
}

const fn refused(name: &'static str, takes: Takes, unless: &'static [&'static str], reason: &'static str) -> Foreign {
    Foreign { name, takes, fate: Fate::Refused(reason, unless) }
}

const OFF: &[&str] = &["false", "none", ""];
const NO_GRAPHS: &str = "graphs are recorded for the batch sizes that occur, so there is nothing to tune";
const ONE_PROCESS: &str = "Firebrick is one process on one device";
const NO_PYTHON_SERVER: &str = "it tunes a web server that Firebrick does not have";
const TEXT_ONLY: &str = "models here read and write text only";
const EVERY_MODEL: &str = "every model generates text and embeds it; classes and rewards are not supported";
const ONE_BACKEND: &str = "there is one implementation of structured output";
const ONE_DEVICE: &str = "this version runs a model on one device";
const NO_LORA: &str = "LoRA adapters are not supported yet; merge the adapter into the model";
const NO_SPECULATION: &str = "speculative decoding is not supported";
const NO_PLUGINS: &str = "there is no Python to run it";
const NO_LOGGED_TEXTS: &str = "texts of requests are never logged";
const MAPPED: &str = "weights are mapped, not copied";
const ONE_KERNEL: &str = "each device has one implementation of every operation";
const NO_KV_TRANSFER: &str = "the KV cache stays on its device";

#[rustfmt::skip]
const FOREIGN: &[Foreign] = {
    use Takes::{Nothing, Value, Values};
    &[
        // Harmless: the result is the same without them.
        ignored("optimization-level", Value, NO_GRAPHS),
        ignored("compilation-config", Value, NO_GRAPHS),
        ignored("performance-mode", Value, NO_GRAPHS),
        ignored("max-seq-len-to-capture", Value, NO_GRAPHS),
        ignored("cuda-graph-sizes", Values, NO_GRAPHS),
        ignored("attention-backend", Value, "each device has one attention kernel"),
        ignored("async-scheduling", Nothing, "the engine decides by itself"),
        ignored("no-async-scheduling", Nothing, "the engine decides by itself"),
        ignored("watermark", Value, "blocks are counted exactly, so no reserve is needed"),
        ignored("long-prefill-token-threshold", Value, "long prompts are cut by --max-num-batched-tokens alone"),
        ignored("max-num-partial-prefills", Value, "prompts are cut by --max-num-batched-tokens alone"),
        ignored("max-long-partial-prefills", Value, "prompts are cut by --max-num-batched-tokens alone"),
        ignored("swap-space", Value, "preempted requests are recomputed, not swapped"),
        ignored("prefix-caching-hash-algo", Value, "the hash is keyed and fixed"),
        ignored("safetensors-load-strategy", Value, MAPPED),
        ignored("max-parallel-loading-workers", Value, ONE_PROCESS),
        ignored("distributed-executor-backend", Value, ONE_PROCESS),
        ignored("worker-use-ray", Nothing, ONE_PROCESS),
        ignored("disable-custom-all-reduce", Nothing, ONE_PROCESS),
        ignored("disable-frontend-multiprocessing", Nothing, ONE_PROCESS),
        ignored("api-server-count", Value, ONE_PROCESS),
        ignored("enable-auto-tool-choice", Nothing, "tool calls are parsed wherever a request offers tools"),
        ignored("uvicorn-log-level", Value, NO_PYTHON_SERVER),
        ignored("disable-uvicorn-access-log", Nothing, NO_PYTHON_SERVER),
        ignored("h11-max-incomplete-event-size", Value, NO_PYTHON_SERVER),
        ignored("h11-max-header-count", Value, NO_PYTHON_SERVER),
        ignored("log-config-file", Value, NO_PYTHON_SERVER),
        ignored("max-log-len", Value, NO_LOGGED_TEXTS),
        ignored("tokenizer-mode", Value, "there is one tokenizer implementation"),
        ignored("config-format", Value, "the format is seen from the files"),
        ignored("guided-decoding-backend", Value, ONE_BACKEND),
        ignored("structured-outputs-config", Value, ONE_BACKEND),
        ignored("enable-request-id-headers", Nothing, "X-Request-Id is always answered"),
        ignored("enable-prompt-tokens-details", Nothing, "usage always has the details"),
        ignored("enable-per-request-metrics", Nothing, "answers always have vllm_stats"),
        ignored("enable-server-load-tracking", Nothing, "/metrics always has the load"),
        ignored("show-hidden-metrics-for-version", Value, "no metric is hidden"),
        ignored("collect-detailed-traces", Values, "traces always have the engine's phases"),
        ignored("response-role", Value, "the role is always assistant"),
        ignored("return-tokens-as-token-ids", Nothing, "requests ask for it, with the field of that name"),
        ignored("limit-mm-per-prompt", Value, TEXT_ONLY),
        ignored("mm-processor-cache-gb", Value, TEXT_ONLY),
        ignored("disable-mm-preprocessor-cache", Nothing, TEXT_ONLY),
        ignored("allowed-local-media-path", Value, TEXT_ONLY),
        ignored("device-ids", Values, ONE_DEVICE),
        ignored("cudagraph-capture-sizes", Values, NO_GRAPHS),
        ignored("max-cudagraph-capture-size", Value, NO_GRAPHS),
        ignored("attention-config", Value, ONE_KERNEL),
        ignored("kernel-config", Value, ONE_KERNEL),
        ignored("moe-backend", Value, ONE_KERNEL),
        ignored("linear-backend", Value, ONE_KERNEL),
        ignored("model-impl", Value, "each architecture has one implementation"),
        ignored("disable-cascade-attn", Nothing, ONE_KERNEL),
        ignored("enable-flashinfer-autotune", Nothing, ONE_KERNEL),
        ignored("disable-hybrid-kv-cache-manager", Nothing, "all layers have the same blocks"),
        ignored("scheduler-reserve-full-isl", Nothing, "a prompt is admitted only with blocks for all of it"),
        ignored("preemption-mode", Value, "preempted requests are recomputed"),
        ignored("use-v2-block-manager", Nothing, "there is one block pool"),
        ignored("num-scheduler-steps", Value, "the engine decides by itself"),
        ignored("disable-async-output-proc", Nothing, "the engine decides by itself"),
        ignored("use-tqdm-on-load", Nothing, "progress is shown on a terminal"),
        ignored("pt-load-map-location", Value, MAPPED),
        ignored("model-loader-extra-config", Value, MAPPED),
        ignored("safetensors-prefetch-num-threads", Value, MAPPED),
        ignored("safetensors-prefetch-block-size", Value, MAPPED),
        ignored("ignore-patterns", Values, "only the files of the model are downloaded"),
        ignored("renderer-num-workers", Value, ONE_PROCESS),
        ignored("data-parallel-backend", Value, ONE_PROCESS),
        ignored("data-parallel-address", Value, ONE_PROCESS),
        ignored("data-parallel-rpc-port", Value, ONE_PROCESS),
        ignored("master-addr", Value, ONE_PROCESS),
        ignored("master-port", Value, ONE_PROCESS),
        ignored("distributed-timeout-seconds", Value, ONE_PROCESS),
        ignored("enable-dbo", Nothing, ONE_PROCESS),
        ignored("all2all-backend", Value, ONE_PROCESS),
        ignored("ray-workers-use-nsight", Nothing, ONE_PROCESS),
        ignored("enable-reasoning", Nothing, "reasoning is told apart wherever the model marks it; see --reasoning-parser"),
        ignored("exclude-tools-when-tool-choice-none", Nothing, "tools are left out of the prompt then in any case"),
        ignored("enable-offline-docs", Nothing, "/docs needs nothing from elsewhere"),
        ignored("log-error-stack", Nothing, NO_PYTHON_SERVER),
        ignored("kv-cache-metrics", Nothing, "/metrics always has the state of the KV cache"),
        ignored("mm-processor-kwargs", Value, TEXT_ONLY),
        ignored("mm-processor-cache-type", Value, TEXT_ONLY),
        ignored("mm-encoder-tp-mode", Value, TEXT_ONLY),
        ignored("mm-encoder-attn-backend", Value, TEXT_ONLY),
        ignored("media-io-kwargs", Value, TEXT_ONLY),
        ignored("allowed-media-domains", Values, TEXT_ONLY),
        ignored("interleave-mm-strings", Nothing, TEXT_ONLY),
        ignored("language-model-only", Nothing, TEXT_ONLY),
        ignored("skip-mm-profiling", Nothing, TEXT_ONLY),
        ignored("disable-chunked-mm-input", Nothing, TEXT_ONLY),
        // Refused: whoever sets them would be misled by silence.
        refused("pipeline-parallel-size", Value, &["1"], ONE_DEVICE),
        refused("data-parallel-size", Value, &["1"], ONE_DEVICE),
        refused("decode-context-parallel-size", Value, &["1"], ONE_DEVICE),
        refused("enable-expert-parallel", Nothing, OFF, ONE_DEVICE),
        refused("trust-remote-code", Nothing, OFF, "code from model repositories is never run; the architectures that work are built in"),
        refused("tokenizer-revision", Value, OFF, "the tokenizer comes with the model"),
        refused("code-revision", Value, OFF, "code from model repositories is never run"),
        refused("runner", Value, &["auto", "generate", "pooling"], EVERY_MODEL),
        refused("task", Value, &["auto", "generate", "embed", "embedding", "score"], EVERY_MODEL),
        refused("convert", Value, &["auto", "none", "embed"], EVERY_MODEL),
        refused("pooler-config", Value, &["{}"], "the model's 1_Pooling/config.json says how vectors are made, or a request with the field `pooling` of /v1/embeddings"),
        refused("hf-overrides", Value, &["{}"], "edit config.json in a local folder instead"),
        refused("hf-config-path", Value, OFF, "edit config.json in a local folder instead"),
        refused("rope-scaling", Value, OFF, "edit config.json in a local folder instead"),
        refused("disable-sliding-window", Nothing, OFF, "a model's window is part of the model"),
        refused("cpu-offload-gb", Value, &["0"], "weights stay on one device; `firebrick plan MODEL` says what fits"),
        refused("enable-lora", Nothing, OFF, NO_LORA),
        refused("lora-modules", Values, OFF, NO_LORA),
        refused("max-loras", Value, OFF, NO_LORA),
        refused("max-lora-rank", Value, OFF, NO_LORA),
        refused("speculative-config", Value, OFF, NO_SPECULATION),
        refused("speculative-model", Value, OFF, NO_SPECULATION),
        refused("num-speculative-tokens", Value, &["0"], NO_SPECULATION),
        refused("kv-transfer-config", Value, OFF, NO_KV_TRANSFER),
        refused("kv-events-config", Value, OFF, NO_KV_TRANSFER),
        refused("kv-offloading-size", Value, &["0"], NO_KV_TRANSFER),
        refused("tool-parser-plugin", Value, OFF, "there is no Python to run it; --tool-call-parser lists what is built in"),
        refused("chat-template-content-format", Value, &["auto", "string"], "message parts are joined to one text"),
        refused("trust-request-chat-template", Nothing, OFF, "templates from clients are never run"),
        refused("middleware", Value, OFF, NO_PLUGINS),
        refused("logits-processors", Values, OFF, "there is no Python to run them"),
        refused("headless", Nothing, OFF, ONE_DEVICE),
        refused("prefill-context-parallel-size", Value, &["1"], ONE_DEVICE),
        refused("data-parallel-size-local", Value, &["1"], ONE_DEVICE),
        refused("data-parallel-rank", Value, &["0"], ONE_DEVICE),
        refused("data-parallel-start-rank", Value, &["0"], ONE_DEVICE),
        refused("nnodes", Value, &["1"], ONE_DEVICE),
        refused("node-rank", Value, &["0"], ONE_DEVICE),
        refused("enable-eplb", Nothing, OFF, ONE_DEVICE),
        refused("cpu-offload-params", Values, OFF, "weights stay on one device"),
        refused("max-cpu-loras", Value, OFF, NO_LORA),
        refused("fully-sharded-loras", Nothing, OFF, NO_LORA),
        refused("lora-dtype", Value, &["auto"], NO_LORA),
        refused("spec-method", Value, OFF, NO_SPECULATION),
        refused("spec-model", Value, OFF, NO_SPECULATION),
        refused("spec-tokens", Value, &["0"], NO_SPECULATION),
        refused("kv-offloading-backend", Value, OFF, NO_KV_TRANSFER),
        refused("ec-transfer-config", Value, OFF, NO_KV_TRANSFER),
        refused("reasoning-parser-plugin", Value, OFF, NO_PLUGINS),
        refused("worker-cls", Value, &["auto"], NO_PLUGINS),
        refused("worker-extension-cls", Value, OFF, NO_PLUGINS),
        refused("scheduler-cls", Value, OFF, NO_PLUGINS),
        refused("io-processor-plugin", Value, OFF, NO_PLUGINS),
        refused("logprobs-mode", Value, &["raw_logprobs"], "log-probabilities are those of the model, before penalties and temperature"),
        refused("enable-log-outputs", Nothing, OFF, NO_LOGGED_TEXTS),
        refused("enable-log-deltas", Nothing, OFF, NO_LOGGED_TEXTS),
        refused("enable-prompt-embeds", Nothing, OFF, "prompts are texts or tokens"),
        refused("skip-tokenizer-init", Nothing, OFF, "the server reads and writes text"),
        refused("tokens-only", Nothing, OFF, "the server reads and writes text"),
        refused("enable-tokenizer-info-endpoint", Nothing, OFF, "/tokenize and /detokenize show what the tokenizer does"),
        refused("enable-sleep-mode", Nothing, OFF, "start with --admin-key and use /v1/models/load and /v1/models/unload"),
        refused("tool-server", Value, OFF, "tools run where the client is"),
        refused("custom-histogram-buckets", Value, &["{}"], "histograms have the buckets that dashboards of vLLM expect"),
        refused("additional-config", Value, &["{}"], "there is no platform plugin to configure"),
        refused("profiler-config", Value, &["{}"], "--otlp-traces-endpoint shows the phases of requests"),
        refused("config", Value, OFF, "give the flags themselves, or use a shell script"),
        refused("grpc", Nothing, OFF, "the server speaks HTTP"),
        refused("allow-credentials", Nothing, OFF, "pages send a key in a header, never cookies"),
        refused("ssl-ciphers", Value, OFF, "only ciphers that are safe today are spoken"),
        refused("enable-ssl-refresh", Nothing, OFF, "start again with the new certificate"),
    ]
};

/// Takes the foreign flags out of a command line; returns what remains and the warnings.
pub fn take_out(args: Vec<OsString>) -> Result<(Vec<OsString>, Vec<String>), Failure> {
    let command = args.get(1).and_then(|command| command.to_str());
    if !command.is_some_and(|command| ["serve", "run-batch"].contains(&command)) {
        return Ok((args, Vec::new()));
    }
    let mut kept = Vec::with_capacity(args.len());
    let mut notices: Vec<String> = Vec::new();
    let mut rest = args.into_iter().peekable();
    while let Some(arg) = rest.next() {
        let Some((flag, given)) = arg.to_str().and_then(lookup) else {
            let is_end = arg == "--";
            kept.push(arg);
            if is_end {
                break;
            }
            continue;
        };
        let is_value = |next: &OsString| next.to_str().is_none_or(|text| !text.starts_with("--"));
        let mut value = given;
        if value.is_none() && flag.takes != Takes::Nothing {
            value = rest.next_if(is_value).and_then(|next| next.into_string().ok());
        }
        while flag.takes == Takes::Values && rest.next_if(is_value).is_some() {}
        notices.extend(judge(flag, value.as_deref())?.filter(|notice| !notices.contains(notice)));
    }
    kept.extend(rest);
    Ok((kept, notices))
}

/// The flag and the value behind its `=`. `--no-NAME` is NAME with the value false; what follows a dot is a part of a
/// JSON value.
fn lookup(arg: &str) -> Option<(&'static Foreign, Option<String>)> {
    let (name, value) = arg.split_once('=').map_or((arg, None), |(name, value)| (name, Some(value.to_owned())));
    let name = name.strip_prefix("--")?;
    let find = |name: &str| FOREIGN.iter().find(|flag| flag.name == name);
    if let Some(flag) = find(name) {
        return Some((flag, value));
    }
    if let Some((stem, _)) = name.split_once('.') {
        return find(stem).map(|flag| (flag, value));
    }
    let switch = find(name.strip_prefix("no-")?).filter(|flag| flag.takes == Takes::Nothing)?;
    Some((switch, Some("false".to_owned())))
}

/// A warning, nothing, or a refusal.
fn judge(flag: &Foreign, value: Option<&str>) -> Result<Option<String>, Failure> {
    let name = flag.name;
    match flag.fate {
        Fate::Ignored(reason) => Ok(Some(format!("--{name} has no effect: {reason}"))),
        Fate::Refused(reason, unless) => {
            let asks_for_nothing = value.is_some_and(|value| unless.contains(&value.to_ascii_lowercase().as_str()));
            if asks_for_nothing {
                return Ok(None);
            }
            let given = value.map(|value| format!(" {value}")).unwrap_or_default();
            Err(Failure::Usage(format!("--{name}{given} is not supported: {reason}; leave the flag out")))
        }
    }
}

/// The end of `serve --help`: the examples and what becomes of vLLM's other flags.
pub fn long_help(examples: &str) -> String {
    let list = |wanted: fn(&Fate) -> bool| {
        let names = FOREIGN.iter().filter(|flag| wanted(&flag.fate)).map(|flag| format!("--{}", flag.name));
        names.collect::<Vec<_>>().join(" ")
    };
    let accepted = list(|fate| matches!(fate, Fate::Ignored(_)));
    let refused = list(|fate| matches!(fate, Fate::Refused(..)));
    format!(
        "{examples}\n\nvLLM's flags may be written with underscores. Accepted with a warning, because nothing depends \
         on them here: {accepted}\n\nRefused with the reason, because silence would mislead: {refused}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> Result<(String, usize), String> {
        let args = line.split_whitespace().map(OsString::from).collect();
        let (kept, notices) = take_out(args).map_err(|failure| failure.to_string())?;
        let kept: Vec<String> = kept.into_iter().map(|arg| arg.into_string().expect("plain text")).collect();
        Ok((kept.join(" "), notices.len()))
    }

    #[test]
    fn harmless_flags_are_dropped_with_one_warning_each() {
        let line =
            "f serve --async-scheduling m --swap-space 4 --port 1 --async-scheduling --cuda-graph-sizes 1 2 --seed 3";
        assert_eq!(taken(line), Ok(("f serve m --port 1 --seed 3".to_owned(), 3)));
    }

    #[test]
    fn misleading_flags_are_refused_and_their_neutral_values_are_not() {
        for line in ["--enable-lora", "--trust-remote-code", "--speculative-config.method ngram"] {
            let refusal = taken(&format!("f serve m {line}")).expect_err(line);
            assert!(refusal.contains("not supported"), "{refusal}");
        }
        for line in ["--no-enable-lora", "--trust-remote-code=False"] {
            assert_eq!(taken(&format!("f serve m {line}")), Ok(("f serve m".to_owned(), 0)), "{line}");
        }
    }

    #[test]
    fn other_commands_and_what_follows_two_dashes_are_left_alone() {
        assert_eq!(taken("f run m --async-scheduling"), Ok(("f run m --async-scheduling".to_owned(), 0)));
        assert_eq!(taken("f serve -- --async-scheduling"), Ok(("f serve -- --async-scheduling".to_owned(), 0)));
    }

    #[test]
    fn a_name_stands_once_in_the_table() {
        let mut names: Vec<&str> = FOREIGN.iter().map(|flag| flag.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FOREIGN.len());
    }
}
