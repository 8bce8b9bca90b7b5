//! The server over a real port, with a scripted model.

mod support;

mod errors;
mod lifecycle;
mod load;
mod logging;
mod openapi;
mod operations;
mod structured;
mod tools;
mod traces;
mod transports;
mod wire;
