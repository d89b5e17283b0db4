//! Compares all checksums.

use std::io::{self, Write};

use activation_store::Recording;
use indicatif::ProgressBar;

/// Prints the first damaged or unreadable file of every shard. Returns whether the recording is whole.
pub(crate) fn verify(recording: &Recording) -> anyhow::Result<bool> {
    let bar = ProgressBar::new(recording.shards() as u64);
    let mut errors = Vec::new();
    for shard in 0..recording.shards() {
        errors.extend(recording.verify_shard(shard).err());
        bar.inc(1);
    }
    bar.finish_and_clear();
    for error in &errors {
        eprintln!("error: {error}");
    }
    let all = recording.shards();
    let damaged = errors.iter().filter(|error| error.is_damage()).count();
    match (damaged, errors.len() - damaged) {
        (0, 0) => writeln!(io::stdout(), "all {all} shards are whole")?,
        (damaged, 0) => writeln!(io::stdout(), "{damaged} of {all} shards are damaged")?,
        (damaged, unread) => {
            writeln!(io::stdout(), "{damaged} of {all} shards are damaged, and {unread} could not be read")?;
        }
    }
    Ok(errors.is_empty())
}
