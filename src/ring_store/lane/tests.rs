//! The lanes alone: no thread, no ring.

use super::*;
use crate::waiting::handle::WriteHandle;

/// A write of rows of one feature.
fn write(lane: u64, component: usize, rows: usize) -> Write {
    let (reply, _) = WriteHandle::pending();
    let batch = ndarray::Array2::<f32>::zeros((rows, 1)).into();
    Write { lane, rows: HandedOver::Batch(component, batch), first_row: 0, reply }
}

#[test]
fn lanes_that_end_together_are_reported_in_the_order_of_their_numbers() {
    for merge in [Merge::Arrival, Merge::RoundRobin] {
        let (mut lanes, mut ledger, mut finished) = (Lanes::new(merge, 2), Ledger::new(2), Finished::default());
        let mut reported = Vec::new();
        let mut ends = |lanes: &mut Lanes, ledger: &mut Ledger, finished: &mut Finished| {
            lanes.report(ledger, finished, |id, _, ending| reported.extend(ending.map(|_| id)));
            reported.clone()
        };
        // The first has a row to deal when it is reported; the second comes, and then both are dealt.
        for lane in [1, 2] {
            lanes.open(lane);
            lanes.push(write(lane, 0, 2), &mut ledger, &mut finished);
            lanes.push(write(lane, 1, 1), &mut ledger, &mut finished);
            lanes.end(lane);
            if lane == 1 {
                assert!(ends(&mut lanes, &mut ledger, &mut finished).is_empty());
            }
        }
        while let Some((_, rows)) = lanes.next() {
            lanes.dealt(rows, &mut ledger, &mut finished);
        }
        assert_eq!(ends(&mut lanes, &mut ledger, &mut finished), [1, 2], "{merge:?}");
    }
}
