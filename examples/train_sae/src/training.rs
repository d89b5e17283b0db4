//! The asynchronous training loop. It trains all SAEs on the same minibatches.

use std::time::{Duration, Instant};

use activation_store::{Minibatches, Monitor};
use anyhow::Result;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::checkpoint::Checkpoints;
use crate::component::Component;
use crate::progress::Progress;

/// Trains on every minibatch until the stream ends. If the capture failed, returns the error after the last minibatch.
pub(crate) async fn train(
    mut minibatches: Minibatches,
    components: &mut [Component],
    start: Instant,
    progress: &Progress,
    mut checkpoints: Option<Checkpoints>,
) -> Result<()> {
    while let Some(minibatch) = minibatches.try_next().await? {
        // The step only computes. The runtime may move its other tasks to another thread during the step.
        tokio::task::block_in_place(|| -> Result<()> {
            for (index, component) in components.iter_mut().enumerate() {
                component.step(minibatch.view::<f32>(index)?, start.elapsed().as_secs_f64());
            }
            Ok(())
        })?;
        let students = components.iter().flat_map(|component| &component.students);
        progress.losses(students.filter_map(|student| Some((student.name.as_str(), student.losses.last()?.1))));
        if let Some(checkpoints) = &mut checkpoints {
            checkpoints.save(minibatch.ordinal() + 1, components, &minibatches).await?;
        }
    }
    if let Some(checkpoints) = &mut checkpoints {
        checkpoints.finish().await?;
    }
    Ok(())
}

/// Looks at the store from time to time until `stop` resolves. Returns the rows in the ring over time.
pub(crate) async fn watch(
    monitor: Monitor,
    start: Instant,
    progress: Progress,
    mut stop: oneshot::Receiver<()>,
) -> Vec<(f64, f64)> {
    let mut fill = Vec::new();
    loop {
        let stats = monitor.stats();
        progress.store(&stats);
        let resident = stats.components.first().map_or(0, |component| component.resident);
        fill.push((start.elapsed().as_secs_f64(), resident as f64));
        if timeout(Duration::from_millis(100), &mut stop).await.is_ok() {
            return fill;
        }
    }
}

#[cfg(test)]
mod tests {
    use activation_store::RingStore;
    use anyhow::anyhow;
    use ndarray::Array2;

    use super::*;
    use crate::component::Plan;

    #[test]
    fn a_capture_that_fails_ends_the_training_with_its_error_after_the_last_row() {
        let rows = |count: usize| Array2::from_shape_fn((count, 6), |(row, x)| (row * 7 % 13 + x) as f32);
        let store = RingStore::builder().component("a", 6).batch_size(8).window(16).build().unwrap();
        let minibatches = store.minibatches();
        let capture = move |lane: activation_store::Producer| {
            lane.extend_blocking(rows(20), "a")?;
            Err(anyhow!("the text is no UTF-8"))
        };
        let capture = store.spawn_producer("capture", capture).unwrap();
        let plan = Plan { latents: 12, k: 3, rate: 0.01, steps: 3, seed: 0 };
        let mut components = [Component::new("a", rows(8), &[plan])];
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let progress = Progress::new(20, 16);
        let trained = train(minibatches, &mut components, Instant::now(), &progress, None);
        let error = runtime.block_on(trained).unwrap_err();
        assert!(capture.join().is_err());
        assert!(error.to_string().contains("the text is no UTF-8"), "{error}");
        assert_eq!(components[0].students[0].losses.len(), 3); // 8, 8 and 4 rows
    }
}
