//! The task that writes into a store of fixed size, in the order in which batches were handed over.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender};

use crate::memory::convert::RowReader;
use crate::rows::batch::Batch;
use crate::rows::error::WriteError;
use crate::tensor_store::rows::Tensor;
use crate::waiting::handle::{WriteReply, Written};
use crate::waiting::panics::Panics;
use crate::waiting::thread::Work;
use crate::waiting::wait::lock;

/// What the writer receives, in order.
pub(crate) enum Message {
    Write {
        component: usize,
        first: usize,
        batch: Batch,
        reply: WriteReply,
    },
    /// Reply when everything before is written.
    Settle(Sender<()>),
    /// Discard everything before, and reply.
    Empty(Sender<()>),
}

pub(crate) struct TensorWriter {
    pub(crate) queue: Receiver<Message>,
    pub(crate) tensor: Arc<Tensor>,
    pub(crate) readers: Vec<RowReader>,
    /// The reply of the batch that is being written. If foreign memory panics, the reply gets the cause.
    pub(crate) answering: Option<WriteReply>,
}

impl Work for TensorWriter {
    fn run(&mut self) {
        while let Ok(message) = self.queue.recv() {
            match message {
                Message::Write { component, first, batch, reply } => {
                    let written = Written { rows: batch.rows(), first_row: first as u64 };
                    self.answering = Some(reply);
                    let said = self.tensor.take_in(&mut self.readers[component], component, first, &batch);
                    said.say(&self.tensor.layout.components()[component]);
                    drop(batch);
                    self.tensor.pending.fetch_sub(1, Ordering::SeqCst);
                    if let Some(reply) = self.answering.take() {
                        reply.resolve(Ok(written));
                    }
                }
                Message::Settle(done) => {
                    let _ = done.send(());
                }
                Message::Empty(done) => {
                    self.tensor.write().clear();
                    self.tensor.pending.fetch_sub(1, Ordering::SeqCst);
                    let _ = done.send(());
                }
            }
        }
    }

    fn fail(&mut self, cause: &str) {
        let _ = self.tensor.poison.set(cause.into());
        // After this, all writes that did not see the poison have been sent.
        drop(lock(&self.tensor.handed));
        let error = WriteError::Poisoned { cause: cause.into() };
        let mut panics = Panics::default();
        let refuse = |reply: WriteReply| reply.resolve(Err(error.clone()));
        panics.catch(|| self.answering.take().into_iter().for_each(refuse));
        for message in self.queue.try_iter() {
            let Message::Write { batch, reply, .. } = message else { continue };
            panics.catch(|| drop(batch));
            panics.catch(|| refuse(reply));
        }
        // A subscriber is foreign code and may panic, too.
        panics.catch(|| tracing::error!(cause, "the writer panicked"));
    }
}
