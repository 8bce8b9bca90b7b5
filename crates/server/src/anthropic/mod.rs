//! Anthropic's Messages API: the same conversations and the same generation in another format.

mod error;
mod format;
mod input;
mod request;
mod stream;

pub use error::{AnthropicError, AnthropicErrorBody};
pub use format::message_object;
pub use input::{count_draft, draft};
pub use request::{CountTokensRequest, MessagesRequest};
pub use stream::MessagesWriter;
