//! The ring against a plain model: no thread in sight.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::rows::element::DType;
use crate::rows::layout::Component;

fn layout(batch_size: usize, features: &[usize]) -> Arc<Layout> {
    let component = |(i, &features): (usize, &usize)| Component {
        name: format!("c{i}").as_str().into(),
        features,
        dtype: DType::F32,
    };
    let components: Vec<_> = features.iter().enumerate().map(component).collect();
    Arc::new(Layout::new(&components, batch_size).unwrap())
}

fn frames(layout: &Arc<Layout>, count: usize) -> Vec<Frame> {
    Frame::allocate(layout, count, "test").unwrap()
}

/// A batch of rows whose every value is `id + component / 4`.
fn batch(ids: std::ops::Range<usize>, component: usize, features: usize) -> Batch {
    ndarray::Array2::from_shape_fn((ids.len(), features), |(row, _)| value(ids.start + row, component)).into()
}

fn value(id: usize, component: usize) -> f32 {
    id as f32 + component as f32 / 4.0
}

/// The ids of the first `rows` rows of a frame; fails where components are not aligned.
fn ids(frame: &Frame, rows: usize) -> Vec<usize> {
    let layout = frame.layout();
    let read = |slot| {
        let mut id = None;
        for component in 0..layout.n_components() {
            let row: &[f32] = bytemuck::cast_slice(frame.row(component, slot));
            let this = *id.get_or_insert(row[0] as usize);
            assert!(row.iter().all(|&got| got == value(this, component)), "row {slot} of {component}: {row:?}");
        }
        id.unwrap()
    };
    (0..rows).map(read).collect()
}

/// The ids of all rows in the ring, in order.
fn held(ring: &OpenFrames) -> Vec<usize> {
    let rows = ring.rows();
    let mut ids: Vec<usize> =
        (0..rows.len()).map(|n| bytemuck::cast_slice::<u8, f32>(rows.row(n, 0))[0] as usize).collect();
    ids.sort_unstable();
    ids
}

fn sorted(ids: &HashSet<usize>) -> Vec<usize> {
    let mut ids: Vec<usize> = ids.iter().copied().collect();
    ids.sort_unstable();
    ids
}

/// Miri takes long.
const FEW: bool = cfg!(miri);

#[derive(Clone, Debug)]
enum Action {
    /// Offer rows.
    Deal(usize),
    /// Discard all, as if so often.
    Clear(u64),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![20 => (1_usize..if FEW { 20 } else { 300 }).prop_map(Action::Deal), 1 => (1_u64..3).prop_map(Action::Clear)];
    prop::collection::vec(action, 1..if FEW { 5 } else { 20 })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if FEW { 2 } else { 96 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_row_comes_out_once_with_all_its_components(
        open in 1_usize..if FEW { 4 } else { 10 },
        batch_size in 1_usize..if FEW { 5 } else { 24 },
        features in prop::collection::vec(1_usize..20, 1..4),
        seed: u64,
        actions in actions(),
    ) {
        let layout = layout(batch_size, &features);
        let mut spare = frames(&layout, 2);
        let mut ring = OpenFrames::new(layout.clone(), frames(&layout, open), seed);
        let (mut next, mut inside, mut out) = (0, std::collections::HashSet::new(), Vec::new());
        for action in actions {
            match action {
                Action::Clear(times) => {
                    prop_assert_eq!(ring.clear(times), inside.len());
                    inside.clear();
                }
                Action::Deal(rows) => {
                    let batches: Vec<Batch> = (0..features.len())
                        .map(|component| batch(next..next + rows, component, features[component]))
                        .collect();
                    let mut dealt = 0;
                    while dealt < rows {
                        let now = ring.deal(rows - dealt, |component| (&batches[component], dealt));
                        inside.extend(next + dealt..next + dealt + now);
                        dealt += now;
                        prop_assert!(now > 0 || ring.is_full());
                        if ring.is_full() {
                            prop_assert_eq!(held(&ring), sorted(&inside));
                            let full = ring.take_full(spare.pop().unwrap()).unwrap();
                            for id in ids(&full, batch_size) {
                                prop_assert!(inside.remove(&id), "row {id} comes twice");
                                out.push(id);
                            }
                            spare.push(full);
                        }
                    }
                    next += rows;
                }
            }
            prop_assert_eq!(held(&ring), sorted(&inside));
        }
        // What is left comes out in minibatches, too, the last one partial.
        let mut leftover = ring.into_leftover();
        let mut sizes = Vec::new();
        loop {
            let rows = leftover.next_rows(batch_size);
            if rows == 0 {
                break;
            }
            prop_assert_eq!(leftover.len(), inside.len());
            let frame = &mut spare[0];
            {
                let rows = leftover.next_rows(frame.layout().rows());
                leftover.fill(frame, rows);
            }
            for id in ids(frame, rows) {
                prop_assert!(inside.remove(&id), "row {id} comes twice");
            }
            sizes.push(rows);
        }
        prop_assert!(inside.is_empty());
        prop_assert!(sizes.iter().rev().skip(1).all(|&rows| rows == batch_size));
    }

    #[test]
    fn how_rows_are_cut_into_batches_changes_nothing(
        open in 1_usize..if FEW { 4 } else { 10 },
        batch_size in 1_usize..if FEW { 5 } else { 24 },
        seed: u64,
        cuts in prop::collection::vec(1_usize..50, 1..8),
    ) {
        let rows = 3 * open * batch_size;
        let run = |mut cuts: Box<dyn Iterator<Item = usize>>| {
            let layout = layout(batch_size, &[3]);
            let mut ring = OpenFrames::new(layout.clone(), frames(&layout, open), seed);
            let (mut at, mut served) = (0, Vec::new());
            while at < rows {
                let n = cuts.next().unwrap_or(1).min(rows - at);
                let batch = batch(at..at + n, 0, 3);
                let mut dealt = 0;
                while dealt < n {
                    dealt += ring.deal(n - dealt, |_| (&batch, dealt));
                    if ring.is_full() {
                        let full = ring.take_full(frames(&layout, 1).pop().unwrap()).unwrap();
                        served.push(ids(&full, batch_size));
                    }
                }
                at += n;
            }
            let mut leftover = ring.into_leftover();
            let mut frame = frames(&layout, 1).pop().unwrap();
            while let n @ 1.. = leftover.next_rows(batch_size) {
                let rows = leftover.next_rows(frame.layout().rows());
                leftover.fill(&mut frame, rows);
                served.push(ids(&frame, n));
            }
            served
        };
        prop_assert_eq!(run(Box::new(std::iter::repeat(rows))), run(Box::new(cuts.into_iter().cycle())));
    }
}
