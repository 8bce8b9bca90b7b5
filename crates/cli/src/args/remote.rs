//! A server that answers: the arguments of the commands that are its clients, under vLLM's names.

use clap::Args;

use super::values::quantity_u32;
use crate::failure::Failure;
use crate::server_client::ServerClient;

/// Which server, and which of its models.
#[derive(Args, Debug)]
#[command(next_help_heading = "Server")]
pub struct RemoteArgs {
    /// Where the server is
    #[arg(long, value_name = "URL", env = "VLLM_URL", default_value = "http://127.0.0.1:8000/v1")]
    pub url: String,

    /// The model's name [default: the first that the server lists]
    #[arg(long, value_name = "NAME", visible_alias = "model")]
    pub model_name: Option<String>,

    /// The server's API key
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Tokens of an answer, at most [default: the server's]
    #[arg(long, value_name = "TOKENS", value_parser = quantity_u32, help_heading = "Sampling")]
    pub max_tokens: Option<u32>,

    /// 0 always takes the most likely token; larger values are freer [default: the server's]
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    pub temperature: Option<f32>,
}

impl RemoteArgs {
    /// A client and the model's name, which is asked of the server unless it is given.
    pub fn connect(&self) -> Result<(ServerClient, String), Failure> {
        let client = ServerClient::new(&self.url, self.api_key.clone(), 1);
        let model = match &self.model_name {
            Some(name) => name.clone(),
            None => {
                client.first_model().map_err(|error| format!("{error}; check --url, --api-key and --model-name"))?
            }
        };
        Ok((client, model))
    }
}
