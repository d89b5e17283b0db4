//! Progress bars.

use std::time::Duration;

use activation_store::Stats;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Shows progress bars if standard error is a terminal.
#[derive(Clone)]
pub(crate) struct Progress {
    rows: ProgressBar,
    ring: ProgressBar,
    loss: ProgressBar,
}

impl Progress {
    /// Makes the bars for a run over `rows` rows with a ring of `window` rows.
    pub(crate) fn new(rows: usize, window: usize) -> Self {
        let bars = MultiProgress::new();
        let bar = |length: usize, template: &str| {
            let bar = bars.add(ProgressBar::new(length as u64));
            // The templates below are valid. If one were not, the default style would do.
            bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
        };
        let progress = Self {
            rows: bar(rows, "captured {wide_bar} {human_pos}/{human_len} rows, {eta} left"),
            ring: bar(window, "ring     {wide_bar} {human_pos}/{human_len} rows"),
            loss: bar(0, "unexplained variance  {msg}"),
        };
        progress.rows.enable_steady_tick(Duration::from_millis(200));
        progress
    }

    /// Shows the counts of the store.
    pub(crate) fn store(&self, stats: &Stats) {
        if let Some(component) = stats.components.first() {
            self.rows.set_position(component.accepted);
            self.ring.set_position(component.resident);
        }
    }

    /// Shows the losses of the latest minibatch.
    pub(crate) fn losses<'a>(&self, losses: impl Iterator<Item = (&'a str, f64)>) {
        let losses: Vec<_> = losses.map(|(name, loss)| format!("{name} {loss:.3}")).collect();
        self.loss.set_message(losses.join("  "));
    }

    pub(crate) fn finish(&self) {
        for bar in [&self.rows, &self.ring, &self.loss] {
            bar.finish_and_clear();
        }
    }
}
