use proptest::prelude::*;

use super::*;
use crate::ring_store::builder::RingStoreBuilder;
use crate::ring_store::snapshot::journal::Log;
use crate::ring_store::snapshot::passes::{GoesOn, Passes};

/// The books of a store with one component.
fn books() -> Books {
    Books::new(Arc::new(RingStoreBuilder::default().component("a", 1).check().unwrap()))
}

/// Takes a pass in, and deals its rows.
fn deal_pass(books: &mut Books, lane: u64, rows: u64, value: Option<Arc<[u8]>>) {
    books.take_pass(lane, rows, Some(value));
    books.dealt(lane, rows, false);
}

/// The books of a store that goes on from a full snapshot.
fn resumed(log: Log, opened: (u64, u64)) -> Books {
    let mut books = books();
    let own = log.lanes.get(&0).map(|log| Record::from(log.clone()));
    let own_ended = own.as_ref().is_some_and(|own| own.ended);
    let going_on = log.lanes.iter().filter(|(_, log)| !log.ended);
    let lanes = going_on.map(|(&id, log)| {
        let end = log.end;
        (ResumedLane { id, from: end, needed: end, end, ended: false }, Record::from(log.clone()))
    });
    let lanes: Vec<_> = lanes.collect();
    let saved = SavedLanes { own_ended, ..SavedLanes::default() };
    let ended = Log { lanes: log.lanes.into_iter().filter(|(_, log)| log.ended).collect(), ..log };
    books.resume(lanes.into_iter(), own, saved, opened, Journal::resumed(0, ended));
    books
}

/// Every row that was dealt: its lane and number. Lanes with an even number write passes: lane 0 of up to four rows, with values, two of
/// seven without rows, and lane 2 of three rows, without values.
#[derive(Default)]
struct Model {
    dealt: Vec<(u64, u64)>,
}

fn passes(lane: u64, rows: u64) -> Vec<Passes> {
    let mut passes = Vec::new();
    let mut first_row = 0;
    for number in 0_u64.. {
        if first_row >= rows {
            break;
        }
        let (rows, value) = if lane == 0 {
            ([0, 0, 1, 2, 3, 4, 1][number as usize % 7], Some(Arc::from([number as u8])))
        } else {
            (3, None)
        };
        passes.push(Passes::one(first_row, rows, value));
        first_row += rows;
    }
    passes
}

/// Whether the pass need not be sent again if the rows before `row` are not needed. If it has no rows, a later row must be among them.
fn is_complete(pass: &Passes, row: u64) -> bool {
    pass.end().unwrap() <= row && pass.first_row < row
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 500 }, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_was_dealt(
        deals in proptest::collection::vec((0_u64..3, 1_u64..9), 0..60),
        forget in proptest::collection::vec(0.0..1.0_f64, 0..4),
        ends in 0_u64..3,
        resumes in any::<bool>(),
    ) {
        let mut books = books();
        let mut model = Model::default();
        let mut next = [0_u64; 3];
        for lane in 1..3 {
            prop_assert_eq!(books.open_lane((lane == 1).then(|| "named".into())).unwrap().id, lane);
        }
        for lane in 0..3 {
            let rows = deals.iter().filter(|deal| deal.0 == lane).map(|deal| deal.1).sum();
            if lane == 1 {
                books.take_pass(lane, rows, None);
            } else {
                passes(lane, rows).into_iter().for_each(|pass| {
                    books.take_pass(lane, pass.rows, Some(pass.value));
                });
            }
        }
        for (lane, rows) in deals {
            books.dealt(lane, rows, false);
            model.dealt.extend((0..rows).map(|row| (lane, next[lane as usize] + row)));
            next[lane as usize] += rows;
        }
        books.end(ends);
        prop_assert_eq!(books.journal.dealt, model.dealt.len() as u64);
        let mut from = 0;
        for share in forget {
            from = from.max((share * model.dealt.len() as f64) as u64);
            if share > 0.5 {
                books.forget_before(from);
                prop_assert_eq!(books.journal.from(), from);
            }
            let since = books.copy().since(from);
            prop_assert_eq!(since.from, from);
            let rows = |segment: &Segment| (0..segment.rows).map(|row| (segment.lane, segment.first_row + row)).collect::<Vec<_>>();
            let kept: Vec<_> = since.segments.iter().flat_map(rows).collect();
            prop_assert_eq!(&kept[..], &model.dealt[from as usize..]);
            for id in 0..3 {
                let before = model.dealt[..from as usize].iter().filter(|row| row.0 == id).count() as u64;
                let Some(lane) = since.lanes.get(&id) else {
                    // The store's own lane opens with its first rows.
                    if id == 0 && next[0] == 0 {
                        continue;
                    }
                    prop_assert!(id == ends && id > 0 && before == next[id as usize]);
                    prop_assert_eq!(since.ended_names.clone().take("named"), id == 1);
                    continue;
                };
                prop_assert!(lane.ended == (id == ends) && !(id == ends && id > 0 && before == next[id as usize]));
                prop_assert_eq!((lane.start, lane.end), (before, next[id as usize]));
                let place = lane.place(lane.start);
                if id == 1 {
                    prop_assert_eq!(place, GoesOn { passes: 0, row: before, value: None });
                } else {
                    let all = passes(id, lane.end);
                    let complete = all.iter().filter(|pass| is_complete(pass, before)).count();
                    let row = all.get(complete).map_or(before, |cut| cut.first_row.min(before));
                    let value = complete.checked_sub(1).and_then(|last| all[last].value.clone());
                    prop_assert_eq!(place, GoesOn { passes: complete as u64, row, value });
                    // Nothing is listed that no resumed store needs.
                    let listed: u64 = lane.passes.iter().map(|passes| passes.passes).sum();
                    prop_assert_eq!(lane.passes_before + listed, all.len() as u64);
                    prop_assert_eq!(lane.passes_before, complete.saturating_sub(1) as u64);
                }
            }
            if resumes {
                books = resumed(since, books.opened());
                prop_assert_eq!((books.journal.from(), books.journal.dealt), (from, model.dealt.len() as u64));
            }
        }
    }
}

#[test]
fn equal_passes_make_one_entry_and_rows_that_are_forgotten_none() {
    let mut books = books();
    for pass in 0..100_000_u64 {
        // Every tenth pass has one row more.
        deal_pass(&mut books, 0, 1 + u64::from(pass % 10 == 0), None);
        books.forget_before(books.journal.dealt.saturating_sub(100));
    }
    assert!(books.lanes[&0].record.passes.iter().count() < 40);
    let log = books.copy().since(0);
    assert_eq!(log.segments, [Segment { lane: 0, first_row: 110_000 - 100, rows: 100 }]);
    assert_eq!(log.lanes[&0].place(110_000), GoesOn { passes: 100_000, row: 110_000, value: None });
}

#[test]
fn a_pass_that_is_sent_again_is_noted_once() {
    let mut record = Record::default();
    for first_row in [0, 4, 0, 4, 8, 12, 12] {
        record.note_pass(Passes::one(first_row, 4, None));
    }
    record.end = 16;
    record.note_pass(Passes::one(12, 4, None));
    assert_eq!(record.log(0).place(16).passes, 4);
}

#[test]
fn passes_without_rows_count_and_open_no_lane() {
    let mut books = books();
    let value = |n: u64| Some(Arc::from(n.to_le_bytes()));
    deal_pass(&mut books, 0, 0, value(1));
    deal_pass(&mut books, 0, 0, value(2));
    assert!(books.copy().since(0).lanes.is_empty(), "the store's own lane opens with its first rows");
    books.take_pass(0, 4, Some(None));
    for n in 0..100_000 {
        books.take_pass(0, 0, Some(value(n)));
    }
    assert_eq!(books.lanes[&0].record.passes.iter().count(), 3, "one entry for passes without rows");
    books.dealt(0, 4, false);
    let place = |books: &Books, row| books.copy().since(0).lanes[&0].place(row);
    assert_eq!(place(&books, 0), GoesOn { passes: 0, row: 0, value: None });
    // The passes without rows after these are sent again, as if they had not come yet.
    assert_eq!(place(&books, 4), GoesOn { passes: 3, row: 4, value: None });
    books.take_pass(0, 2, Some(None));
    books.dealt(0, 1, false);
    assert_eq!(place(&books, 5), GoesOn { passes: 100_003, row: 4, value: value(99_999) });
    // They are sent again.
    let mut resumed = resumed(books.copy().since(0), books.opened());
    resumed.send_again(0).unwrap();
    for rows in [0, 4, 0, 2] {
        resumed.take_pass(0, rows, Some(None));
    }
    assert_eq!(place(&resumed, 5), GoesOn { passes: 100_003, row: 4, value: value(99_999) });
}

#[test]
fn emptying_forgets_rows_and_keeps_positions() {
    let mut books = books();
    books.take_pass(0, 4, Some(Some(Arc::from(*b"a"))));
    books.take_pass(0, 4, Some(Some(Arc::from(*b"b"))));
    books.dealt(0, 6, false);
    books.emptied(2);
    assert_eq!((books.journal.emptied, books.journal.from(), books.journal.dealt), (2, 0, 0));
    let log = books.copy().since(0);
    assert!(log.segments.is_empty());
    assert_eq!(log.lanes[&0].place(8), GoesOn { passes: 2, row: 8, value: Some(Arc::from(*b"b")) });
}

#[test]
fn an_ended_lane_is_kept_while_its_rows_are_kept() {
    let mut books = books();
    assert_eq!(books.open_lane(Some("replica".into())).unwrap().id, 1);
    deal_pass(&mut books, 1, 6, None);
    deal_pass(&mut books, 0, 6, None);
    books.end(1);
    assert_eq!(books.copy().since(5).lanes[&1].name.as_deref(), Some("replica"));
    let mut log = books.copy().since(6);
    assert!(!log.lanes.contains_key(&1) && log.ended_names.take("replica"));
    books.forget_before(12);
    assert_eq!(books.listed().count(), 1);
    assert!(books.journal.ended_names().clone().take("replica"));
}
