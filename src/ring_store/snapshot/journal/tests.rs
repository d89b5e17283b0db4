use proptest::prelude::*;

use super::*;

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
        let mut journal = Journal::default();
        let mut model = Model::default();
        let mut next = [0_u64; 3];
        for lane in 0..3 {
            journal.open(lane, (lane == 1).then(|| "named".into()));
        }
        for lane in [0, 2] {
            let rows = deals.iter().filter(|deal| deal.0 == lane).map(|deal| deal.1).sum();
            passes(lane, rows).into_iter().for_each(|pass| journal.pass(lane, pass));
        }
        for (lane, rows) in deals {
            journal.dealt([Segment { lane, first_row: next[lane as usize], rows }]);
            model.dealt.extend((0..rows).map(|row| (lane, next[lane as usize] + row)));
            next[lane as usize] += rows;
        }
        journal.end(ends);
        prop_assert_eq!(journal.dealt, model.dealt.len() as u64);
        let mut from = 0;
        for share in forget {
            from = from.max((share * model.dealt.len() as f64) as u64);
            if share > 0.5 {
                journal.forget_before(from);
                prop_assert_eq!(journal.from(), from);
            }
            let since = journal.clone().since(from);
            prop_assert_eq!(since.from, from);
            let rows = |segment: &Segment| (0..segment.rows).map(|row| (segment.lane, segment.first_row + row)).collect::<Vec<_>>();
            let kept: Vec<_> = since.segments.iter().flat_map(rows).collect();
            prop_assert_eq!(&kept[..], &model.dealt[from as usize..]);
            for id in 0..3 {
                let before = model.dealt[..from as usize].iter().filter(|row| row.0 == id).count() as u64;
                let Some(lane) = since.lanes.get(&id) else {
                    prop_assert!(id == ends && id > 0 && before == next[id as usize]);
                    prop_assert_eq!(since.ended_names.clone().take("named"), id == 1);
                    continue;
                };
                prop_assert!(lane.ended == (id == ends) && !(id == ends && id > 0 && before == next[id as usize]));
                prop_assert_eq!((lane.start, lane.end), (before, next[id as usize]));
                prop_assert_eq!(lane.unnamed, 0);
                let place = lane.place(lane.start);
                if id == 1 {
                    prop_assert_eq!(place, Place { passes: 0, row: before, value: None });
                } else {
                    let all = passes(id, lane.end);
                    let complete = all.iter().filter(|pass| is_complete(pass, before)).count();
                    let row = all.get(complete).map_or(before, |cut| cut.first_row.min(before));
                    let value = complete.checked_sub(1).and_then(|last| all[last].value.clone());
                    prop_assert_eq!(place, Place { passes: complete as u64, row, value });
                    // Nothing is listed that no resumed store needs.
                    let listed: u64 = lane.passes.iter().map(|passes| passes.passes).sum();
                    prop_assert_eq!(lane.passes_before + listed, all.len() as u64);
                    prop_assert_eq!(lane.passes_before, complete.saturating_sub(1) as u64);
                }
            }
            if resumes {
                journal = Journal::resumed(0, since);
                prop_assert_eq!((journal.from(), journal.dealt), (from, model.dealt.len() as u64));
            }
        }
    }
}

#[test]
fn equal_passes_make_one_entry_and_rows_that_are_forgotten_none() {
    let mut journal = Journal::default();
    journal.open(0, None);
    for pass in 0..100_000_u64 {
        // Every tenth pass has one row more.
        let first_row = pass + pass.div_ceil(10);
        let rows = 1 + u64::from(pass % 10 == 0);
        journal.pass(0, Passes::one(first_row, rows, None));
        journal.dealt([Segment { lane: 0, first_row, rows }]);
        journal.forget_before(journal.dealt.saturating_sub(100));
    }
    let lane = &journal.lanes[&0];
    assert!(lane.passes.iter().count() < 40);
    assert_eq!(journal.segments.iter().count(), 1);
    let log = journal.since(0);
    assert_eq!(log.segments, [Segment { lane: 0, first_row: 110_000 - 100, rows: 100 }]);
    assert_eq!(log.lanes[&0].place(110_000), Place { passes: 100_000, row: 110_000, value: None });
}

#[test]
fn a_pass_that_is_sent_again_is_noted_once() {
    let mut journal = Journal::default();
    journal.open(0, None);
    for first_row in [0, 4, 0, 4, 8, 12, 12] {
        journal.pass(0, Passes::one(first_row, 4, None));
    }
    journal.dealt([Segment { lane: 0, first_row: 0, rows: 16 }]);
    journal.pass(0, Passes::one(12, 4, None));
    assert_eq!(journal.since(0).lanes[&0].place(16).passes, 4);
}

#[test]
fn passes_without_rows_count_and_open_no_lane() {
    let mut journal = Journal::default();
    let value = |n: u64| Some(Arc::from(n.to_le_bytes()));
    journal.pass(0, Passes::one(0, 0, value(1)));
    journal.pass(0, Passes::one(0, 0, value(2)));
    assert!(journal.clone().since(0).lanes.is_empty(), "the store's own lane opens with its first rows");
    journal.handed_over(0);
    journal.pass(0, Passes::one(0, 4, None));
    for n in 0..100_000 {
        journal.pass(0, Passes::one(4, 0, value(n)));
    }
    assert_eq!(journal.lanes[&0].passes.iter().count(), 3, "one entry for passes without rows");
    journal.dealt([Segment { lane: 0, first_row: 0, rows: 4 }]);
    let place = |journal: &Journal, row| journal.clone().since(0).lanes[&0].place(row);
    assert_eq!(place(&journal, 0), Place { passes: 0, row: 0, value: None });
    // The passes without rows after these are sent again, as if they had not come yet.
    assert_eq!(place(&journal, 4), Place { passes: 3, row: 4, value: None });
    journal.pass(0, Passes::one(4, 2, None));
    journal.dealt([Segment { lane: 0, first_row: 4, rows: 1 }]);
    assert_eq!(place(&journal, 5), Place { passes: 100_003, row: 4, value: value(99_999) });
    // They are sent again.
    let mut resumed = Journal::resumed(0, journal.since(0));
    for (rows, first_row) in [(0, 0), (4, 0), (0, 4), (2, 4)] {
        resumed.pass(0, Passes::one(first_row, rows, None));
    }
    assert_eq!(place(&resumed, 5), Place { passes: 100_003, row: 4, value: value(99_999) });
}

#[test]
fn emptying_forgets_rows_and_keeps_positions() {
    let mut journal = Journal::default();
    journal.open(0, None);
    journal.pass(0, Passes::one(0, 4, Some(Arc::from(*b"a"))));
    journal.pass(0, Passes::one(4, 4, Some(Arc::from(*b"b"))));
    journal.dealt([Segment { lane: 0, first_row: 0, rows: 6 }]);
    journal.emptied(2, [(0, 8)].into_iter());
    assert_eq!((journal.emptied, journal.from, journal.dealt), (2, 0, 0));
    let log = journal.since(0);
    assert!(log.segments.is_empty());
    assert_eq!(log.lanes[&0].place(8), Place { passes: 2, row: 8, value: Some(Arc::from(*b"b")) });
}

#[test]
fn an_ended_lane_is_kept_while_its_rows_are_kept() {
    let mut journal = Journal::default();
    journal.open(0, None);
    journal.open(1, Some("replica".into()));
    journal.dealt([Segment { lane: 1, first_row: 0, rows: 6 }, Segment { lane: 0, first_row: 0, rows: 6 }]);
    journal.end(1);
    assert_eq!(journal.clone().since(5).lanes[&1].name.as_deref(), Some("replica"));
    let mut log = journal.clone().since(6);
    assert!(!log.lanes.contains_key(&1) && log.ended_names.take("replica"));
    journal.forget_before(12);
    assert_eq!(journal.lanes().len(), 1);
    assert!(journal.ended_names.take("replica"));
}
