//! Keeps the messages that a store sends through `tracing`. A subscriber is for the whole process, so a test that uses it is alone in
//! its file.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The messages, from DEBUG on.
#[derive(Clone, Default)]
pub(crate) struct Messages {
    texts: Arc<Mutex<Vec<String>>>,
    /// A function that is called at each event.
    at_each: Option<fn()>,
}

impl Messages {
    /// Keeps the messages of this process.
    pub(crate) fn of_process() -> Self {
        Self::with_each(None)
    }

    /// Keeps the messages of this process, and calls `at_each` at each event.
    pub(crate) fn with_each(at_each: Option<fn()>) -> Self {
        let messages = Messages { texts: Arc::default(), at_each };
        tracing::subscriber::set_global_default(messages.clone()).expect("the only test of its file");
        messages
    }

    /// Returns how many messages contain `text`.
    pub(crate) fn count(&self, text: &str) -> usize {
        let messages = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        messages.iter().filter(|message| message.contains(text)).count()
    }
}

impl Visit for Messages {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.texts.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("activation_store") && *metadata.level() <= Level::DEBUG
    }
    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
        if let Some(call) = self.at_each {
            call();
        }
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
