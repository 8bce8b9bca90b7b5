//! What the command line decides about the server: keys, quotas, certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use firebrick_server::{
    ApiKeys, ClientCertificates, CorsConfig, Limits, Quota, ServerConfig, Tls, TlsFiles, TraceConfig,
};

use crate::args::{OperationsArgs, ServeArgs};
use crate::failure::Failure;
use crate::serve::page;

/// The keys of the command line and of the file.
pub fn api_keys(args: &OperationsArgs) -> Result<Vec<String>, Failure> {
    let mut keys: Vec<String> = args.api_key.iter().filter(|key| !key.is_empty()).cloned().collect();
    if let Some(path) = &args.api_key_file {
        keys.extend(keys_of_file(path)?);
    }
    Ok(keys)
}

fn keys_of_file(path: &Path) -> Result<Vec<String>, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::Usage(format!("--api-key-file {name} cannot be read: {error}")))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    // An empty list would open the server to everybody.
    if keys.is_empty() { Err(Failure::Usage(format!("--api-key-file {name} holds no key"))) } else { Ok(keys) }
}

/// Certificate and key, where they are given.
pub fn tls(args: &OperationsArgs) -> Result<Option<Tls>, Failure> {
    let (Some(certificates), Some(key)) = (&args.ssl_certfile, &args.ssl_keyfile) else { return Ok(None) };
    let client_certificates = match args.ssl_cert_reqs {
        0 => ClientCertificates::Ignored,
        1 => ClientCertificates::Optional,
        _ => ClientCertificates::Required,
    };
    let files = TlsFiles {
        certificates: certificates.clone(),
        key: key.clone(),
        client_authorities: args.ssl_ca_certs.clone(),
        client_certificates,
    };
    let wrong = |error| Failure::Usage(format!("--ssl-certfile, --ssl-keyfile, --ssl-ca-certs: {error}"));
    Tls::from_files(&files).map(Some).map_err(wrong)
}

/// Everything that the server needs to know.
pub fn server_config(args: &ServeArgs, api_keys: &[String]) -> Result<ServerConfig, Failure> {
    let operations = &args.operations;
    let positive = |duration: Duration| Some(duration).filter(|duration| !duration.is_zero());
    Ok(ServerConfig {
        limits: Limits {
            body_bytes_max: args.max_body_size,
            connections_max: args.max_connections.max(1),
            logprobs_max: args.max_logprobs,
            queued_tokens_max: args.max_num_queued_tokens.map(|tokens| tokens as u64),
            requests_max: operations.max_concurrent_requests.unwrap_or(usize::MAX),
            request_timeout: positive(operations.request_timeout),
            keep_alive_interval: positive(operations.sse_keep_alive_interval),
            ..Limits::default()
        },
        api_keys: ApiKeys::new(api_keys),
        admin_keys: ApiKeys::new(&operations.admin_key),
        quota: Quota {
            requests_per_minute: operations.rate_limit_requests,
            tokens_per_minute: operations.rate_limit_tokens,
            open_requests: operations.max_concurrent_requests_per_key,
        },
        docs: !operations.disable_fastapi_docs,
        trace: trace(args)?,
        page: args.ui.as_ref().map(|folder| page::find(folder.as_deref())).transpose()?.map(Arc::new),
        traces: traces(operations)?,
        root_path: operations.root_path.clone(),
        cors: cors(args)?,
        log_requests: args.enable_log_requests && !args.disable_log_requests,
        force_usage: args.enable_force_include_usage,
        stream_interval: args.stream_interval,
        version: env!("CARGO_PKG_VERSION"),
        ..ServerConfig::default()
    })
}

/// `--trace` shows what everybody asks, so that it takes a key of its own.
fn trace(args: &ServeArgs) -> Result<bool, Failure> {
    if args.trace && !ApiKeys::new(&args.operations.admin_key).is_required() {
        let advice = "give --admin-key KEY, which those who watch must send as `Authorization: Bearer KEY`";
        return Err(Failure::Usage(format!("--trace shows what everybody asks the model: {advice}")));
    }
    Ok(args.trace)
}

fn traces(args: &OperationsArgs) -> Result<Option<TraceConfig>, Failure> {
    let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let Some(endpoint) = args.otlp_traces_endpoint.clone().filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        return Err(Failure::Usage(format!("--otlp-traces-endpoint {endpoint} must begin with http:// or https://")));
    }
    if endpoint.trim_end_matches('/').ends_with(":4317") {
        let advice = "traces are sent over HTTP, for which collectors use port 4318";
        return Err(Failure::Usage(format!("--otlp-traces-endpoint {endpoint} looks like a port for gRPC; {advice}")));
    }
    let headers = trace_headers(&set("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default())?;
    let service_name = set("OTEL_SERVICE_NAME").unwrap_or_else(|| "firebrick".to_owned());
    Ok(Some(TraceConfig { endpoint, headers, service_name }))
}

/// `name=value,name=value`, as OpenTelemetry writes headers.
fn trace_headers(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    let wrong = || Failure::Usage("OTEL_EXPORTER_OTLP_HEADERS must be written as name=value,name=value".into());
    pairs.map(|text| pair(text).ok_or_else(wrong)).collect()
}

fn cors(args: &ServeArgs) -> Result<Option<CorsConfig>, Failure> {
    let list = |flag: &str, text: &str| -> Result<Vec<String>, Failure> {
        let help =
            || Failure::Usage(format!("{flag} is `{text}`, but must be a JSON list of strings such as '[\"*\"]'"));
        serde_json::from_str(text).map_err(|_| help())
    };
    let Some(origins) = &args.allowed_origins else { return Ok(None) };
    Ok(Some(CorsConfig {
        origins: list("--allowed-origins", origins)?,
        methods: list("--allowed-methods", &args.allowed_methods)?,
        headers: list("--allowed-headers", &args.allowed_headers)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_traces_are_pairs() {
        let pairs = [("a", "b=c"), ("d", "e")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(trace_headers("a=b=c, d=e").expect("two pairs"), pairs);
        assert!(trace_headers("").expect("none").is_empty());
        assert!(trace_headers("a").is_err());
    }

    #[test]
    fn a_file_of_keys_has_one_a_line_and_never_none() {
        let path = std::env::temp_dir().join(format!("firebrick-keys-{}", std::process::id()));
        std::fs::write(&path, "# keys\n\n  one \ntwo\r\n").expect("a file can be written");
        assert_eq!(keys_of_file(&path).expect("two keys"), ["one", "two"]);
        std::fs::write(&path, "# none\n").expect("a file can be written");
        assert!(keys_of_file(&path).expect_err("refused").to_string().contains("holds no key"));
        std::fs::remove_file(&path).expect("it is ours");
        assert!(keys_of_file(&path).expect_err("refused").to_string().contains("cannot be read"));
    }
}
