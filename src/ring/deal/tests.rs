//! The dealing against a plain model.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// Where rows are, kept the obvious way.
struct Model {
    slots: usize,
    frames: Vec<Vec<u32>>,
}

impl Model {
    fn new(frames: usize, slots: usize) -> Self {
        Model { slots, frames: vec![Vec::new(); frames] }
    }

    /// Puts a row; returns whether its frame is full with that, and empties it.
    fn put(&mut self, place: Place) -> bool {
        assert!((place.slot as usize) < self.slots);
        let frame = &mut self.frames[place.frame as usize];
        assert!(!frame.contains(&place.slot), "a slot is given out twice");
        frame.push(place.slot);
        let full = frame.len() == self.slots;
        if full {
            frame.clear();
        }
        full
    }

    fn resident(&self) -> HashSet<(u32, u32)> {
        (0..).zip(&self.frames).flat_map(|(frame, slots)| slots.iter().map(move |&slot| (frame, slot))).collect()
    }
}

/// Rows that the short runs of the start deal.
fn rows_at_start(frames: usize, slots: usize) -> usize {
    (0..frames).map(|m| slots * m / frames).sum()
}

/// Deals `rows` rows in pieces; returns their places.
fn deal(dealer: &mut Dealer, rows: usize, pieces: &mut impl Iterator<Item = usize>) -> Vec<Place> {
    let mut places = Vec::new();
    while places.len() < rows {
        let piece = pieces.next().unwrap_or(1).clamp(1, rows - places.len());
        let before = places.len();
        let full = dealer.deal(piece, &mut places);
        assert!(places.len() > before && places.len() <= before + piece);
        assert!(full.is_some() || places.len() == before + piece, "it stops only at a full frame");
        assert!(full.is_none() || full == places.last().map(|place| place.frame as usize));
    }
    places
}

fn cases() -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 2 } else { 128 }, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_slot_is_given_out_once_and_one_frame_completes_per_minibatch(
        frames in 1_usize..if cfg!(miri) { 5 } else { 20 },
        slots in 1_usize..if cfg!(miri) { 12 } else { 40 },
        seed: u64,
        pieces in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let mut dealer = Dealer::new(frames, slots, seed);
        let mut model = Model::new(frames, slots);
        let start = rows_at_start(frames, slots);
        let rows = start + 4 * frames * slots;
        let places = deal(&mut dealer, rows, &mut pieces.iter().copied().cycle());
        let mut completed = 0;
        for (row, &place) in places.iter().enumerate() {
            if model.put(place) {
                completed += 1;
                // One for each minibatch of rows after the start, to within a run.
                let due = start + completed * slots;
                prop_assert!((row + 1).abs_diff(due) <= frames, "frame {completed} at row {row}, not {due}");
            }
        }
        prop_assert!(completed * slots + frames >= rows - start);
        let occupied: Vec<_> = dealer.occupied().collect();
        prop_assert_eq!(occupied.len(), dealer.resident());
        let distinct: HashSet<_> = occupied.iter().map(|place| (place.frame, place.slot)).collect();
        prop_assert_eq!(&distinct, &model.resident());
        let rest: HashSet<_> = dealer.shuffle_leftover().iter().map(|place| (place.frame, place.slot)).collect();
        prop_assert_eq!(&rest, &distinct);
    }

    #[test]
    fn a_run_gives_every_frame_one_row(frames in 1_usize..if cfg!(miri) { 5 } else { 20 }, slots in 1_usize..if cfg!(miri) { 12 } else { 40 }, seed: u64) {
        let mut dealer = Dealer::new(frames, slots, seed);
        let start = rows_at_start(frames, slots);
        let places = deal(&mut dealer, start + 3 * frames * slots, &mut std::iter::repeat(64));
        for run in places[start..].chunks_exact(frames) {
            let dealt_to: HashSet<_> = run.iter().map(|place| place.frame).collect();
            prop_assert_eq!(dealt_to.len(), frames);
        }
    }

    #[test]
    fn the_pieces_in_which_rows_come_change_nothing(
        frames in 1_usize..if cfg!(miri) { 5 } else { 20 },
        slots in 1_usize..if cfg!(miri) { 12 } else { 40 },
        seed: u64,
        pieces in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let rows = 3 * frames * slots;
        let (mut one, mut other) = (Dealer::new(frames, slots, seed), Dealer::new(frames, slots, seed));
        let places = deal(&mut one, rows, &mut std::iter::repeat(rows));
        prop_assert_eq!(&places, &deal(&mut other, rows, &mut pieces.iter().copied().cycle()));
        prop_assert_eq!(one.shuffle_leftover(), other.shuffle_leftover());
    }
}

/// Each frame is as likely as any other for each row of a run, whatever the row before it got.
#[test]
#[cfg_attr(miri, ignore = "statistics take long")]
fn every_order_within_a_run_is_as_likely() {
    const FRAMES: usize = 8;
    const RUNS: usize = 8000;
    let mut dealer = Dealer::new(FRAMES, 1000, 5);
    let start = rows_at_start(FRAMES, 1000);
    let places = deal(&mut dealer, start + RUNS * FRAMES, &mut std::iter::repeat(4096));
    let mut at = [[0_usize; FRAMES]; FRAMES];
    let mut followed_by = [[0_usize; FRAMES]; FRAMES];
    for run in places[start..].chunks_exact(FRAMES) {
        for (position, place) in run.iter().enumerate() {
            at[position][place.frame as usize] += 1;
        }
        for pair in run.windows(2) {
            followed_by[pair[0].frame as usize][pair[1].frame as usize] += 1;
        }
    }
    for (i, counts) in at.iter().enumerate() {
        for (j, &count) in counts.iter().enumerate() {
            // Mean 1000, standard deviation 30 for both.
            assert!(count.abs_diff(RUNS / FRAMES) < 150, "frame {j} got {count} of the rows at {i}");
            let pairs = followed_by[i][j];
            assert!(if i == j { pairs == 0 } else { pairs.abs_diff(RUNS / FRAMES) < 150 }, "{i} then {j}: {pairs}");
        }
    }
}

#[test]
fn another_seed_deals_otherwise_and_a_restart_goes_on() {
    let places = |seed| deal(&mut Dealer::new(8, 8, seed), 100, &mut std::iter::repeat(100));
    assert_eq!(places(1), places(1));
    assert_ne!(places(1), places(2));
    let mut dealer = Dealer::new(8, 8, 1);
    let first = deal(&mut dealer, 100, &mut std::iter::repeat(100));
    dealer.restart();
    assert_eq!(dealer.resident(), 0);
    let second = deal(&mut dealer, 100, &mut std::iter::repeat(100));
    assert_ne!(first, second, "with other random numbers");
    assert_eq!(first.len(), second.len());
}

#[test]
fn a_restart_staggers_the_frames_again() {
    let (frames, slots) = (8, 24);
    let mut dealer = Dealer::new(frames, slots, 1);
    let start = rows_at_start(frames, slots);
    let staggered: Vec<u32> = (0..frames).map(|m| (slots * m / frames) as u32).collect();
    for rows_before in [0, 3, frames * slots / 2 + 3, 3 * frames * slots + 5] {
        deal(&mut dealer, rows_before, &mut std::iter::repeat(100));
        dealer.restart();
        deal(&mut dealer, start, &mut std::iter::repeat(100));
        assert_eq!(dealer.filled(), staggered, "after {rows_before} rows");
    }
}

#[test]
fn an_eighth_of_a_frame_spreads_over_the_window_whether_stripes_take_single_rows_or_groups() {
    for (frames, slots, gap) in
        [(8, 4096, STRIPES), (MANY_FRAMES, 4096, (STRIPES - 1) * GROUP + 1), (MANY_FRAMES, 4104, STRIPES)]
    {
        let order = Order::new(frames, slots);
        let mut dealt_as = vec![None; slots];
        for i in 0..slots {
            assert_eq!(dealt_as[order.slot(i)].replace(i), None, "a slot is given out twice");
        }
        for eighth in dealt_as.chunks_exact(slots / STRIPES) {
            let mut eighth: Vec<usize> = eighth.iter().flatten().copied().collect();
            eighth.sort_unstable();
            assert!(eighth.windows(2).all(|pair| pair[1] - pair[0] <= gap), "{frames} frames of {slots} slots");
        }
    }
}
