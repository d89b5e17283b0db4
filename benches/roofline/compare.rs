//! Compares two configurations in turns by their rows per second. So other work of the machine slows down both.

use activation_store::{DType, Minibatches};

use crate::Effort;
use crate::pipeline::{BATCH, Case, consume, sources};
use crate::report::{Must, Number, median};

const FEATURES: usize = 768;

pub(crate) fn measure(effort: Effort) -> Vec<Number> {
    let case = |name| Case::new(name, FEATURES);
    let pairs = [
        // One row of two components has the same bytes as two rows of one component.
        ("two components to one, bytes/s", Case { components: 2, ..case("") }, case(""), 2.0, 0.9),
        ("four lanes to one, rows/s", Case { producers: 4, ..case("") }, case(""), 1.0, 0.9),
        ("bf16 from f32 to f32, rows/s", Case { dtype: DType::BF16, ..case("") }, case(""), 1.0, 1.0),
        (
            "a window of 2 GiB to one of 128 MiB, rows/s",
            Case { window_bytes: 2 << 30, ..case("") },
            Case { window_bytes: 128 << 20, ..case("") },
            1.0,
            0.85,
        ),
    ];
    let mut numbers = Vec::new();
    for (name, case, other, scale, least) in pairs {
        for read in [false, true] {
            numbers.push(Number {
                name: format!("{name}, {}", if read { "read" } else { "dropped" }),
                value: scale * median(&ratios(&case, &other, read, effort)),
                unit: "x",
                must: Some(Must::BeAtLeast(least)),
            });
        }
    }
    numbers
}

/// Returns the rows per second of `case` divided by the rows per second of `other`, once for each round.
fn ratios(case: &Case, other: &Case, read: bool, effort: Effort) -> Vec<f64> {
    let sources = sources(FEATURES);
    let batches = effort.bytes / (BATCH * FEATURES * size_of::<f32>());
    // The other pipeline stands still during this time, because its ring and its queue are full.
    let time = |minibatches: &mut Minibatches| {
        consume(minibatches, 8, read);
        consume(minibatches, batches, read).as_secs_f64()
    };
    case.with_producers(&sources, |minibatches| {
        other.with_producers(&sources, |others| {
            consume(minibatches, 2 * case.window() / BATCH, false);
            consume(others, 2 * other.window() / BATCH, false);
            (0..effort.rounds).map(|_| time(others) / time(minibatches)).collect()
        })
    })
}
