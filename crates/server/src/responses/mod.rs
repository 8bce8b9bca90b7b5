//! OpenAI's Responses API: the same conversations and the same generation in another format, and responses that are kept.

mod draft;
mod format;
mod input;
mod request;
mod store;
mod stream;

pub use draft::draft;
pub use format::ResponseFormat;
pub use request::ResponsesRequest;
pub use store::{ResponseStore, StoreLimits, StoredResponse};
pub use stream::ResponseWriter;
