//! Compares all checksums.

use std::io::{self, Write};

use activation_store::Recording;
use indicatif::ProgressBar;

/// True if the recording is whole.
pub(crate) fn verify(recording: &Recording) -> anyhow::Result<bool> {
    let bar = ProgressBar::new(recording.shards() as u64);
    let verified = recording.verify(|done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    verified?;
    writeln!(io::stdout(), "all {} shards are whole", recording.shards())?;
    Ok(true)
}
