//! The wire types of the OpenAI API, as vLLM extends it.

mod fields;
mod request;
mod response;
mod structured;
mod tools;

pub use fields::{Loose, OneOrMany, Prompt};
pub use request::{ChatMessage, ChatRequest, CompletionRequest, ContentPart, MessageContent, SamplingFields};
pub use response::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatDelta, ChatLogprobs, ChatResponse, ChatTokenLogprob, ChatTopLogprob,
    CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionResponse, CompletionTokensDetails, Field,
    PromptLogprob, PromptPosition, PromptTokensDetails, ReplyMessage, StopReason, TopLogprobs, Usage, VllmStats,
};
pub use structured::{JsonSchemaFormat, ResponseFormat, StructureFields, StructuredOutputFields};
pub use tools::{CallDelta, FunctionDelta, PastCall, ReplyCall, ReplyFunction, Tool, ToolFunction};
