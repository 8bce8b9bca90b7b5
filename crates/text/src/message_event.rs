//! What an assistant's text means, in the order it was said: reasoning, text and tool calls.

/// One thing that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageEvent {
    /// More of what the model thought before it spoke.
    Reasoning(String),
    /// More of what the model says.
    Text(String),
    /// A tool call begins.
    CallBegin {
        /// The tool.
        name: String,
    },
    /// More of the arguments of the call that began last; all of it together is a JSON object.
    CallArguments(String),
    /// The call that began last is complete.
    CallEnd,
    /// The call that began last breaks off or is not well formed. Who has not shown it yet shows this text instead.
    CallBroken {
        /// How the model wrote it.
        raw: String,
    },
}

/// Collects events: neighbours of one kind become one, and white space around calls is dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct EventSink {
    events: Vec<MessageEvent>,
    /// White space that belongs to the text only if more text follows.
    space: String,
    after_call: bool,
}

impl EventSink {
    /// What came since the last call.
    pub fn take(&mut self) -> Vec<MessageEvent> {
        std::mem::take(&mut self.events)
    }

    /// Whether the last thing but white space was a call.
    pub fn is_after_call(&self) -> bool {
        self.after_call
    }

    pub fn text(&mut self, text: &str) {
        let visible = text.trim_end();
        if visible.is_empty() {
            self.space.push_str(text);
            return;
        }
        if self.after_call {
            self.space.clear();
            self.say(visible.trim_start());
        } else {
            let space = std::mem::take(&mut self.space);
            self.say(&space);
            self.say(visible);
        }
        self.space.push_str(&text[visible.len()..]);
        self.after_call = false;
    }

    pub fn begin(&mut self, name: String) {
        self.space.clear();
        self.after_call = true;
        self.events.push(MessageEvent::CallBegin { name });
    }

    pub fn arguments(&mut self, text: &str) {
        match self.events.last_mut() {
            Some(MessageEvent::CallArguments(arguments)) => arguments.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(MessageEvent::CallArguments(text.to_owned())),
        }
    }

    pub fn end(&mut self) {
        self.events.push(MessageEvent::CallEnd);
    }

    pub fn broken(&mut self, raw: String) {
        self.events.push(MessageEvent::CallBroken { raw });
    }

    /// No more text follows.
    pub fn finish(&mut self) {
        let space = std::mem::take(&mut self.space);
        if !self.after_call {
            self.say(&space);
        }
    }

    fn say(&mut self, text: &str) {
        match self.events.last_mut() {
            Some(MessageEvent::Text(said)) => said.push_str(text),
            _ if text.is_empty() => {}
            _ => self.events.push(MessageEvent::Text(text.to_owned())),
        }
    }
}
