//! Compares all checksums.

use std::io::{self, Write};

use activation_store::Recording;
use indicatif::ProgressBar;

/// Prints the first damaged file of every damaged shard. Returns whether the recording is whole.
pub(crate) fn verify(recording: &Recording) -> anyhow::Result<bool> {
    let bar = ProgressBar::new(recording.shards() as u64);
    let mut damage = Vec::new();
    for shard in 0..recording.shards() {
        damage.extend(recording.verify_shard(shard).err());
        bar.inc(1);
    }
    bar.finish_and_clear();
    for error in &damage {
        eprintln!("error: {error}");
    }
    let all = recording.shards();
    match damage.len() {
        0 => writeln!(io::stdout(), "all {all} shards are whole")?,
        damaged => writeln!(io::stdout(), "{damaged} of {all} shards are damaged")?,
    }
    Ok(damage.is_empty())
}
