use proptest::prelude::*;

use super::*;

/// Every row that was dealt: its lane and number. Lanes with an even number write passes, of `1 + number % 5` rows.
#[derive(Default)]
struct Model {
    dealt: Vec<(u64, u64)>,
}

fn passes(lane: u64, rows: u64) -> Vec<PassEntry> {
    let mut passes = Vec::new();
    let mut first_row = 0;
    for number in 0_u64.. {
        if first_row >= rows {
            break;
        }
        let rows = 1 + number % 5;
        passes.push(PassEntry { first_row, rows, value: Some(Box::from([number as u8, lane as u8])) });
        first_row += rows;
    }
    passes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 500 }, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_is_what_was_dealt(
        deals in proptest::collection::vec((0_u64..3, 1_u64..9), 0..60),
        forget in proptest::collection::vec(0.0..1.0_f64, 0..4),
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
        prop_assert_eq!(journal.dealt, model.dealt.len() as u64);
        let mut from = 0;
        for share in forget {
            from = from.max((share * model.dealt.len() as f64) as u64);
            if share > 0.5 {
                journal.forget_before(from);
            }
            let since = journal.since(from);
            prop_assert_eq!(since.from, from);
            let rows = |segment: &Segment| (0..segment.rows).map(|row| (segment.lane, segment.first_row + row)).collect::<Vec<_>>();
            let kept: Vec<_> = since.segments.iter().flat_map(rows).collect();
            prop_assert_eq!(&kept[..], &model.dealt[from as usize..]);
            for (id, lane) in &since.lanes {
                let before = model.dealt[..from as usize].iter().filter(|row| row.0 == *id).count() as u64;
                prop_assert_eq!((lane.start, lane.end), (before, next[*id as usize]));
                let place = lane.place(lane.start);
                if *id == 1 {
                    prop_assert_eq!(place, Place { passes: 0, row: before, value: None });
                } else {
                    let all = passes(*id, lane.end);
                    let complete = all.iter().filter(|pass| pass.end() <= before).count();
                    let row = all.get(complete).map_or(before, |cut| cut.first_row.min(before));
                    let value = complete.checked_sub(1).and_then(|last| all[last].value.clone());
                    prop_assert_eq!(place, Place { passes: complete as u64, row, value });
                }
            }
        }
    }
}

#[test]
fn emptying_forgets_rows_and_keeps_positions() {
    let mut journal = Journal::default();
    journal.open(0, None);
    journal.pass(0, PassEntry { first_row: 0, rows: 4, value: Some(Box::from(*b"a")) });
    journal.pass(0, PassEntry { first_row: 4, rows: 4, value: Some(Box::from(*b"b")) });
    journal.dealt([Segment { lane: 0, first_row: 0, rows: 6 }]);
    journal.emptied(2, [(0, 8)].into_iter());
    assert_eq!((journal.emptied, journal.from, journal.dealt, journal.segments.len()), (2, 0, 0, 0));
    let place = journal.lanes[&0].place(8);
    assert_eq!(place, Place { passes: 2, row: 8, value: Some(Box::from(*b"b")) });
}

#[test]
fn an_ended_lane_is_kept_while_its_rows_are_kept() {
    let mut journal = Journal::default();
    journal.open(0, None);
    journal.open(1, Some("replica".into()));
    journal.dealt([Segment { lane: 1, first_row: 0, rows: 6 }, Segment { lane: 0, first_row: 0, rows: 6 }]);
    journal.end(1);
    assert!(journal.lanes.contains_key(&1));
    journal.forget_before(6);
    assert!(!journal.lanes.contains_key(&1));
    assert_eq!(journal.ended.get(&1).map(|name| &**name), Some("replica"));
}
