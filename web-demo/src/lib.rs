//! Firebrick in a browser tab: the engine, the executor, the model and the text of the native binary, in a Web Worker.
//!
//! Wiring only. [`Tab`] is what the worker holds: it loads a model file, takes requests, runs steps, and says after each
//! step what the engine did, from the engine's own state. Messages in and out are JSON (`messages.rs`), so that the page
//! and its tests read the same text.

mod answer;
mod loading;
mod messages;
mod tab;

pub use tab::{ModelFiles, Tab};

use wasm_bindgen::prelude::wasm_bindgen;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn console_error(text: &str);
}

/// A failed assertion ends the worker; the browser's console then says which.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|info| console_error(&info.to_string())));
}
