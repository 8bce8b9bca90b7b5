//! One spelling for every flag, before clap reads them: vLLM's shortcuts, underscores, and `--no-` pairs.

use std::ffi::OsString;

/// Switches that `--no-NAME` turns off.
const SWITCHES: [&str; 10] = [
    "enforce-eager",
    "deterministic",
    "enable-prefix-caching",
    "enable-chunked-prefill",
    "enable-log-requests",
    "disable-log-requests",
    "disable-log-stats",
    "allow-unauthenticated",
    "disable-fastapi-docs",
    "ignore-eos",
];

/// vLLM's shortcuts of more than one letter, and what they stand for.
const SHORTCUTS: [(&str, &str); 9] = [
    ("-O", "--optimization-level"),
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-ep", "--enable-expert-parallel"),
    ("-dcp", "--decode-context-parallel-size"),
    ("-sc", "--speculative-config"),
    ("-cc", "--compilation-config"),
    ("-q", QUANTIZATION),
];

/// What `-q` stands for, except where a command has another meaning for it.
const QUANTIZATION: &str = "--quantization";

/// Commands to which vLLM gives `-q` as `--quick`.
const QUICK: [&str; 2] = ["chat", "complete"];

/// Rewrites a command line. Flags without a command belong to `serve`, as in vLLM's `api_server`.
pub fn normalise(args: Vec<OsString>) -> Vec<OsString> {
    let mut normal: Vec<OsString> = Vec::with_capacity(args.len() + 1);
    let mut args = args.into_iter();
    normal.extend(args.next());
    let mut rest = args.peekable();
    if rest.peek().and_then(|first| first.to_str()).is_some_and(is_flag_of_serve) {
        normal.push("serve".into());
    }
    let is_quick = rest.peek().and_then(|first| first.to_str()).is_some_and(|command| QUICK.contains(&command));
    let mut literal = false;
    for arg in rest {
        literal |= arg == "--";
        match arg.to_str() {
            Some(text) if !(literal || is_quick && text.starts_with("-q")) => normal.push(respell(text).into()),
            _ => normal.push(arg),
        }
    }
    normal
}

fn is_flag_of_serve(first: &str) -> bool {
    first.starts_with('-') && !matches!(first, "--help" | "-h" | "--version" | "-V" | "--" | "-")
}

fn respell(arg: &str) -> String {
    let (name, value) = arg.split_once('=').map_or((arg, None), |(name, value)| (name, Some(value)));
    let shortcut = SHORTCUTS.iter().find(|(short, _)| *short == name).map(|(_, long)| (*long).to_owned());
    if let Some(level) = arg.strip_prefix("-O").filter(|level| level.len() == 1) {
        return format!("--optimization-level={level}");
    }
    if let Some(part) = arg.strip_prefix("-O.") {
        return format!("--compilation-config.{part}");
    }
    let Some(long) = shortcut.or_else(|| name.starts_with("--").then(|| name.replace('_', "-"))) else {
        return arg.to_owned();
    };
    match (long.strip_prefix("--no-"), value) {
        (Some(switch), None) if SWITCHES.contains(&switch) => format!("--{switch}=false"),
        (_, Some(value)) => format!("{long}={value}"),
        (_, None) => long,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(line: &str) -> String {
        let args = line.split_whitespace().map(OsString::from).collect();
        let normal = normalise(args).into_iter().map(|arg| arg.into_string().expect("plain text"));
        normal.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn flags_have_one_spelling() {
        assert_eq!(normal("f serve m --max_model_len 2"), "f serve m --max-model-len 2");
        assert_eq!(
            normal("f serve -tp 2 -O3 -q=awq"),
            "f serve --tensor-parallel-size 2 --optimization-level=3 --quantization=awq"
        );
        assert_eq!(normal("f serve --no_enable_chunked_prefill"), "f serve --enable-chunked-prefill=false");
        assert_eq!(normal("f serve -O 3 -O.mode=3"), "f serve --optimization-level 3 --compilation-config.mode=3");
        assert_eq!(normal("f --model a_b"), "f serve --model a_b");
    }

    #[test]
    fn values_and_other_arguments_stay() {
        assert_eq!(normal("f run m -- --not_a_flag"), "f run m -- --not_a_flag");
        assert_eq!(normal("f --version"), "f --version");
        assert_eq!(normal("f chat -q a_b"), "f chat -q a_b");
        assert_eq!(normal("f serve --chat-template=a_b"), "f serve --chat-template=a_b");
    }
}
