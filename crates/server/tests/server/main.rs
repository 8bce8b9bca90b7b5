//! The server over a real port, with a scripted model.

mod support;

mod batches;
mod beam_search;
mod errors;
mod gathering;
mod lifecycle;
mod load;
mod logging;
mod messages;
mod models;
mod openapi;
mod operations;
mod page;
mod pooling;
mod prompt_logprobs;
mod reports;
mod responses;
mod serve_flags;
mod structured;
mod tools;
mod traces;
mod transports;
mod watching;
mod wire;
