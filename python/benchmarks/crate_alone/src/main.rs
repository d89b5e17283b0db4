//! The crate without Python: a producer thread that hands over recycled batches, a consumer that drops the minibatches.
//!
//! `crate_alone SECONDS WINDOW FEED BATCH FEATURES` prints rows per second; FEED is the rows of a batch that is handed over.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use activation_store::{Batch, RingStore};

/// Memory that several batches lend from.
struct Shared(Arc<Vec<f32>>);

impl AsRef<[f32]> for Shared {
    fn as_ref(&self) -> &[f32] {
        &self.0
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|arg| arg.parse()).collect::<Result<_, _>>()?;
    let &[seconds, window, feed, batch, features] = &numbers[..] else {
        return Err("usage: crate_alone SECONDS WINDOW FEED BATCH FEATURES".into());
    };
    let store = RingStore::builder().component("a", features).batch_size(batch).window(window).build()?;
    let mut minibatches = store.minibatches();
    let stop = AtomicBool::new(false);
    let rate = std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let sources: Vec<_> = (0..8).map(|i| Arc::new(vec![i as f32; feed * features])).collect();
            for source in sources.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                let Ok(batch) = Batch::from_owner(Shared(source.clone()), features) else {
                    break;
                };
                if store.extend_blocking(batch, 0).is_err() {
                    break;
                }
            }
            store.close();
        });
        let mut drained = minibatches.blocking();
        // Start-up: the first window fills before one row comes out for each that goes in.
        for minibatch in drained.by_ref().take(window / batch) {
            minibatch?;
        }
        let (start, mut rows) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(seconds as u64) {
            rows += drained.next().transpose()?.map_or(0, |minibatch| minibatch.rows());
        }
        let rate = rows as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for minibatch in drained {
            minibatch?;
        }
        producer.join().map_err(|_| "the producer panicked")?;
        Ok::<_, Box<dyn Error>>(rate)
    })?;
    println!("{rate}");
    Ok(())
}
