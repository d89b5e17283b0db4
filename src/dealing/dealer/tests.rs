//! The dealing against a plain model.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// The dealing as it is defined: row by row, from the start, with nothing kept but counts.
struct Model {
    frames: usize,
    slots: usize,
    streams: Streams,
    /// Rows that each frame was given.
    given: Vec<usize>,
}

impl Model {
    fn new(frames: usize, slots: usize, seed: u64, emptied: u64) -> Self {
        Model { frames, slots, streams: Streams::new(seed, emptied), given: vec![0; frames] }
    }

    /// The frames that take part in a run, in order.
    fn run(&self, run: usize) -> Vec<usize> {
        let share = |run: usize, frame: usize| run * frame / self.frames;
        let takes_part = |&frame: &usize| run >= self.slots || share(run + 1, frame) > share(run, frame);
        let mut order: Vec<usize> = (0..self.frames).filter(takes_part).collect();
        shuffle(&mut order, &mut self.streams.run(run as u64));
        order
    }

    /// The slots of a frame in the order in which its `fill`-th fill takes them.
    fn fill(&self, frame: usize, fill: usize) -> Vec<u32> {
        let mut slots = Slots::new(self.frames, self.slots);
        slots.shuffle(frame, &mut self.streams.fill((fill * self.frames + frame) as u64));
        (0..self.slots).map(|i| slots.slot(frame, i as u32)).collect()
    }

    /// The places of the first `rows` rows.
    fn deal(&mut self, rows: usize) -> Vec<Place> {
        let mut orders: Vec<Vec<u32>> = (0..self.frames).map(|frame| self.fill(frame, 0)).collect();
        let mut places = Vec::new();
        // No run has more rows than there are frames; of the first ones, some have none.
        let runs = 0..self.slots + rows / self.frames + 1;
        let dealt_to: Vec<usize> = runs.flat_map(|run| self.run(run)).take(rows).collect();
        for frame in dealt_to {
            let i = self.given[frame] % self.slots;
            if i == 0 {
                orders[frame] = self.fill(frame, self.given[frame] / self.slots);
            }
            places.push(Place { frame: frame as u32, slot: orders[frame][i] });
            self.given[frame] += 1;
        }
        places
    }

    fn filled(&self) -> Vec<u32> {
        self.given.iter().map(|given| (given % self.slots) as u32).collect()
    }

    /// The places that hold a row, in no order.
    fn occupied(&self) -> HashSet<(u32, u32)> {
        let held =
            |(frame, given): (usize, &usize)| self.fill(frame, given / self.slots)[..given % self.slots].to_vec();
        let frames = self.given.iter().enumerate();
        frames
            .flat_map(|(frame, given)| held((frame, given)).into_iter().map(move |slot| (frame as u32, slot)))
            .collect()
    }
}

/// Rows that the short runs of the start deal.
fn rows_at_start(frames: usize, slots: usize) -> usize {
    (0..frames).map(|m| slots * m / frames).sum()
}

/// Deals `rows` rows in pieces; returns their places.
fn deal(dealer: &mut Dealer, rows: usize, pieces: &mut impl Iterator<Item = usize>) -> Vec<Place> {
    let mut places = Vec::new();
    let last = dealer.runs.slots as u32 - 1;
    while places.len() < rows {
        let piece = pieces.next().unwrap_or(1).clamp(1, rows - places.len());
        let (before, filled) = (places.len(), dealer.filled());
        let full = dealer.deal(piece, &mut places);
        assert!(places.len() > before && places.len() <= before + piece);
        assert!(full.is_some() || places.len() == before + piece, "it stops only at a full frame");
        let dealt_to =
            |frame: usize| places[before..].iter().filter(|place| place.frame as usize == frame).count() as u32;
        for (frame, filled) in filled.into_iter().enumerate() {
            assert_eq!(full == Some(frame), filled + dealt_to(frame) > last, "it stops at every full frame");
        }
    }
    places
}

fn pairs(places: &[Place]) -> Vec<(u32, u32)> {
    places.iter().map(|place| (place.frame, place.slot)).collect()
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases: if cfg!(miri) { 2 } else { cases }, failure_persistence: None, ..ProptestConfig::default() }
}

/// Frames and slots of a frame: fewer and more of one than of the other, slots in random order and along stripes.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    if cfg!(miri) {
        return prop_oneof![(1_usize..5, 1_usize..12)].boxed();
    }
    prop_oneof![6 => (1_usize..20, 1_usize..40), 1 => (1_usize..200, 1_usize..5), 1 => (1_usize..5, 250_usize..600)]
        .boxed()
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn rows_go_where_the_model_says_however_they_are_cut(
        (frames, slots) in shapes(),
        seed: u64,
        emptied in 0_u64..3,
        windows in 0.0..5.0,
        pieces in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let mut dealer = Dealer::new(frames, slots, seed);
        dealer.go_to(DealtTo { emptied, dealt: 0 });
        let mut model = Model::new(frames, slots, seed, emptied);
        let rows = (windows * (frames * slots) as f64) as usize;
        let places = deal(&mut dealer, rows, &mut pieces.iter().copied().cycle());
        prop_assert_eq!(&places, &model.deal(rows));
        prop_assert_eq!(dealer.position(), DealtTo { emptied, dealt: rows as u64 });
        prop_assert_eq!(dealer.filled(), model.filled());
        // What is left is all there is, once.
        let occupied = model.occupied();
        prop_assert_eq!(dealer.resident(), occupied.len());
        let leftover = pairs(&dealer.shuffle_leftover());
        prop_assert_eq!(leftover.len(), occupied.len());
        prop_assert_eq!(&leftover.into_iter().collect::<HashSet<_>>(), &occupied);
        prop_assert_eq!(&pairs(&dealer.occupied().collect::<Vec<_>>()).into_iter().collect::<HashSet<_>>(), &occupied);
    }

    #[test]
    fn dealing_goes_on_from_any_position_as_if_it_had_dealt_there(
        (frames, slots) in shapes(),
        seed: u64,
        emptied in 0_u64..3,
        windows in 0.0..5.0,
        ahead in 0.0..5.0,
    ) {
        let rows = |windows: f64| (windows * (frames * slots) as f64) as usize;
        let position = DealtTo { emptied, dealt: rows(windows) as u64 };
        let mut there = Dealer::new(frames, slots, seed);
        there.go_to(DealtTo { emptied, dealt: 0 });
        deal(&mut there, rows(windows), &mut std::iter::repeat(1000));
        // From wherever it was before.
        let mut jumped = Dealer::new(frames, slots, seed);
        deal(&mut jumped, rows(ahead), &mut std::iter::repeat(1000));
        jumped.go_to(position);
        prop_assert_eq!(jumped.position(), there.position());
        prop_assert_eq!(jumped.filled(), there.filled());
        prop_assert_eq!(jumped.shuffle_leftover(), there.shuffle_leftover());
        let on = 2 * frames * slots + 7;
        prop_assert_eq!(
            deal(&mut jumped, on, &mut std::iter::repeat(1000)),
            deal(&mut there, on, &mut std::iter::repeat(333))
        );
    }

    #[test]
    fn every_slot_is_given_out_once_a_fill_and_one_frame_completes_per_minibatch(
        (frames, slots) in shapes(),
        seed: u64,
    ) {
        let start = rows_at_start(frames, slots);
        let rows = start + 4 * frames * slots;
        let places = deal(&mut Dealer::new(frames, slots, seed), rows, &mut std::iter::repeat(1000));
        let (mut taken, mut completed) = (vec![HashSet::new(); frames], 0);
        for (row, place) in places.iter().enumerate() {
            let frame = &mut taken[place.frame as usize];
            prop_assert!((place.slot as usize) < slots && frame.insert(place.slot), "a slot is given out twice");
            if frame.len() == slots {
                frame.clear();
                completed += 1;
                // One for each minibatch of rows after the start, to within a run.
                let due = start + completed * slots;
                prop_assert!((row + 1).abs_diff(due) <= frames, "frame {completed} at row {row}, not {due}");
            }
        }
        prop_assert!(completed * slots + frames >= rows - start);
        for run in places[start..].chunks_exact(frames) {
            let dealt_to: HashSet<_> = run.iter().map(|place| place.frame).collect();
            prop_assert_eq!(dealt_to.len(), frames, "a run gives every frame one row");
        }
    }

    #[test]
    fn fills_begin_where_the_arithmetic_says((frames, slots) in shapes()) {
        let runs = Runs::new(frames, slots);
        let rows = 4 * frames * slots;
        let places = Model::new(frames, slots, 3, 0).deal(rows);
        // Where the current fill of each frame began, and its rows; and the fills in the order in which they completed.
        let (mut begun, mut complete) = (vec![(0, 0); frames], Vec::new());
        for (row, place) in places.iter().enumerate() {
            let (began, filled) = &mut begun[place.frame as usize];
            if *filled == 0 {
                *began = row as u64;
            }
            *filled += 1;
            if *filled == slots {
                complete.push((*began, row as u64));
                *filled = 0;
            }
        }
        for (n, &(began, completed)) in complete.iter().enumerate() {
            let before = runs.rows_before_fill(n as u64);
            prop_assert!(before <= began, "{n}: {before} > {began}");
            // The run is the one in which it began, or the very first.
            prop_assert!(before == 0 || runs.containing(began) == runs.containing(before));
            // Of all the frames that had completed by then, none is missing, and this one is not among them.
            let earlier = complete.iter().filter(|&&(_, completed)| completed < before).count();
            prop_assert_eq!(runs.completed(before), earlier as u64);
            prop_assert!(earlier <= n);
            let now = runs.completed(completed + 1);
            prop_assert!(now <= n as u64 + 1);
        }
    }

    #[test]
    fn runs_are_counted_without_going_through_them((frames, slots) in shapes(), at in 0.0..2.0) {
        let runs = Runs { frames: frames as u64, slots: slots as u64 };
        let run = (at * slots as f64) as u64;
        let rows: u64 = (0..frames).map(|frame| runs.given(frame, run)).sum();
        prop_assert_eq!(runs.rows_before(run), rows);
        let containing = runs.containing(rows);
        prop_assert!(runs.rows_before(containing) <= rows && rows < runs.rows_before(containing + 1));
    }
}

/// Each frame is as likely as any other for each row of a run, whatever the row before it got.
#[test]
#[cfg_attr(miri, ignore = "statistics take long")]
fn all_orders_within_a_run_are_equally_likely() {
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
fn another_seed_or_emptying_gives_other_places() {
    let places = |seed, emptied| {
        let mut dealer = Dealer::new(8, 8, seed);
        dealer.go_to(DealtTo { emptied, dealt: 0 });
        deal(&mut dealer, 100, &mut std::iter::repeat(100))
    };
    let all: HashSet<_> = (0..4).flat_map(|seed| (0..4).map(move |emptied| pairs(&places(seed, emptied)))).collect();
    assert_eq!(all.len(), 16);
}

#[test]
fn a_restart_staggers_the_frames_again() {
    let (frames, slots) = (8, 24);
    let mut dealer = Dealer::new(frames, slots, 1);
    let start = rows_at_start(frames, slots);
    let staggered: Vec<u32> = (0..frames).map(|m| (slots * m / frames) as u32).collect();
    for (emptied, rows_before) in (1..).zip([0, 3, frames * slots / 2 + 3, 3 * frames * slots + 5]) {
        deal(&mut dealer, rows_before, &mut std::iter::repeat(100));
        dealer.go_to(DealtTo { emptied, dealt: 0 });
        assert_eq!(dealer.resident(), 0);
        deal(&mut dealer, start, &mut std::iter::repeat(100));
        assert_eq!(dealer.filled(), staggered, "after {rows_before} rows");
    }
}

/// If this fails, a seed no longer gives the minibatches that it gave before: see [`DEALING_VERSION`].
#[test]
#[cfg_attr(miri, ignore = "Miri takes long")]
fn this_dealing_version_deals_as_it_always_has() {
    let digest = |frames: usize, slots: usize| {
        let mut dealer = Dealer::new(frames, slots, 7);
        dealer.go_to(DealtTo { emptied: 2, dealt: 1_000_000_000_000 });
        let mut places = deal(&mut dealer, 10_000, &mut std::iter::repeat(10_000));
        places.extend(dealer.shuffle_leftover());
        let words = places.iter().flat_map(|place| [place.frame, place.slot]);
        words.fold(0_u64, |digest, word| digest.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(word))
    };
    assert_eq!(DEALING_VERSION, 1);
    assert_eq!(
        [digest(13, 7), digest(5, 300), digest(3, 4096), digest(512, 4100)],
        [9_313_488_013_370_013_465, 6_726_063_504_604_450_398, 13_731_052_928_248_357_423, 17_855_549_593_792_243_569]
    );
}

/// Full frames, each as the ages of its rows, slot by slot: how many rows were dealt before.
fn full_frames(dealer: &mut Dealer, rows: usize) -> Vec<Vec<usize>> {
    let (frames, slots) = (dealer.filled.len(), dealer.runs.slots as usize);
    let mut open = vec![vec![0; slots]; frames];
    let (mut full, mut places, mut dealt) = (Vec::new(), Vec::new(), 0);
    while dealt < rows {
        places.clear();
        let completed = dealer.deal(4096, &mut places);
        for place in &places {
            open[place.frame as usize][place.slot as usize] = dealt;
            dealt += 1;
        }
        full.extend(completed.map(|frame| open[frame].clone()));
    }
    full
}

fn correlation(a: &[usize], b: &[usize]) -> f64 {
    let mean = |x: &[usize]| x.iter().sum::<usize>() as f64 / x.len() as f64;
    let (a_mean, b_mean) = (mean(a), mean(b));
    let product = |x: &[usize], x_mean: f64, y: &[usize], y_mean: f64| -> f64 {
        x.iter().zip(y).map(|(&x, &y)| (x as f64 - x_mean) * (y as f64 - y_mean)).sum()
    };
    product(a, a_mean, b, b_mean) / (product(a, a_mean, a, a_mean) * product(b, b_mean, b, b_mean)).sqrt()
}

/// No slot is always old: any 32nd of a minibatch spans the window, and what slot a row has says nothing about its age in the
/// next minibatches. Along eight stripes that all start at slot 0, the same measures give 0.15 and 0.99.
#[test]
#[cfg_attr(miri, ignore = "statistics take long")]
fn no_slot_is_always_old() {
    for (frames, slots) in [(8, 1024), (32, 1024), (40, 3000), (64, 4096), (128, 4096), (512, 4096)] {
        let window = frames * slots;
        let full = full_frames(&mut Dealer::new(frames, slots, 3), window * 2 + 60 * slots);
        let steady = &full[full.len() - 60..];
        let part = slots / 32;
        let mut least: f64 = 1.0;
        for ages in steady {
            for start in (0..=slots - part).step_by(13).chain([slots - part]) {
                let ages = &ages[start..start + part];
                least = least.min((ages.iter().max().unwrap() - ages.iter().min().unwrap()) as f64 / window as f64);
            }
        }
        assert!(least >= 0.8, "{frames} frames of {slots}: a 32nd spans {least}");
        let pairs = (0..60).flat_map(|i| (0..i).map(move |j| (i, j)));
        let correlations: Vec<f64> = pairs.map(|(i, j)| correlation(&steady[i], &steady[j])).collect();
        let mean = correlations.iter().sum::<f64>() / correlations.len() as f64;
        assert!(mean.abs() <= 0.1, "{frames} frames of {slots}: slots and ages correlate by {mean}");
    }
}

/// How minibatches of `batch` rows mix, served from rows in this order: how far apart the rows of a minibatch are, and how far
/// apart those of neighbouring minibatches, against `window`; and how much a row's place in the order says about its age
/// among `window` rows.
fn mixing(served: &[usize], batch: usize, window: usize) -> (f64, f64) {
    let neighbours = served.windows(2).map(|pair| pair[0].abs_diff(pair[1]) as f64);
    let apart = neighbours.sum::<f64>() / (served.len() - 1) as f64 / window as f64;
    // Within stretches of an eighth of the window, place and age correlate where rows are served as they come.
    let stretch = (window / 8).max(2 * batch).max(16);
    let places: Vec<usize> = (0..stretch).collect();
    let stretches: Vec<f64> = served.chunks_exact(stretch).map(|ages| correlation(&places, ages)).collect();
    (apart, stretches.iter().sum::<f64>() / stretches.len() as f64)
}

/// Minibatches that share frames are mixed as large ones are. A queue and a shuffle of small blocks fail the same bounds.
#[test]
#[cfg_attr(miri, ignore = "statistics take long")]
fn small_minibatches_are_mixed() {
    for (batch, window) in [(1, 1000), (1, 100), (2, 1000), (4, 91), (7, 91), (7, 7000), (32, 4096), (32, 512)] {
        let slots = frame_rows(batch, window);
        let frames = window / slots;
        assert_eq!(slots % batch, 0);
        let rows = 40 * window.max(1000);
        let full = full_frames(&mut Dealer::new(frames, slots, 3), rows);
        // The order in which single minibatches serve their rows.
        let served: Vec<usize> = full.into_iter().skip(frames).flatten().collect();
        let window = frames * slots;
        let (apart, in_order) = mixing(&served, batch, window);
        // Two rows at random of those in the window are a third of it apart.
        assert!(apart > 0.25, "{batch} in {window}: neighbours are {apart} apart");
        assert!(in_order.abs() < 0.5, "{batch} in {window}: {in_order} in order");
        let queue: Vec<usize> = (0..rows).collect();
        let mut blocks = queue.clone();
        let mut rng = Streams::new(1, 0).run(0);
        blocks.chunks_mut(window / 8).for_each(|block| shuffle(block, &mut rng));
        for (name, control) in [("a queue", queue), ("shuffled blocks", blocks)] {
            let (apart, in_order) = mixing(&control, batch, window);
            assert!(apart < 0.1 || in_order > 0.8, "{name}: {apart}, {in_order}");
        }
    }
}
