//! The orders of slots against lists that are built the obvious way.

use proptest::prelude::*;

use super::*;

/// The order of a frame's slots, by hand: the rows go round the stripes, in groups as long as they fill every stripe.
fn along_stripes_by_hand(slots: usize, group: usize) -> Vec<usize> {
    let bits = (0..=5).rev().find(|bits| slots >= STRIPE << bits).unwrap();
    let grouped = slots / (group << bits) * (group << bits);
    let mut stripes = vec![Vec::new(); 1 << bits];
    for i in 0..slots {
        let turn = if i < grouped { i / group } else { i - grouped };
        stripes[turn % (1 << bits)].push(i);
    }
    // Bits reversed: the halves take turns, and within each half the quarters, and so on.
    let turn_of = |stripe: usize| (0..bits).map(|bit| (stripe >> bit & 1) << (bits - 1 - bit)).sum::<usize>();
    let rows: Vec<usize> = (0..1 << bits).flat_map(|stripe| stripes[turn_of(stripe)].clone()).collect();
    let mut order = vec![0; slots];
    rows.iter().enumerate().for_each(|(slot, &i)| order[i] = slot);
    order
}

fn order(slots: &Slots, frame: usize) -> Vec<usize> {
    (0..slots.per_frame).map(|i| slots.slot(frame, i as u32) as usize).collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 64 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_fill_takes_every_slot_once_in_an_order_of_its_own(
        per_frame in prop_oneof![1_usize..STRIPED, STRIPED..4 * STRIPED],
        frames in 1_usize..4,
        seed: u64,
    ) {
        let mut slots = Slots::new(frames, per_frame);
        let mut rng = Generator::new(seed);
        for frame in 0..frames {
            slots.shuffle(frame, &mut rng);
        }
        for frame in 0..frames {
            let order = order(&slots, frame);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..per_frame));
            if per_frame >= STRIPED {
                let start = order[0];
                let rotated: Vec<usize> = along_stripes_by_hand(per_frame, 1).iter().map(|slot| (slot + start) % per_frame).collect();
                prop_assert_eq!(&order, &rotated);
            }
            let filled = vec![per_frame as u32 / 2; frames];
            let mut places = Vec::new();
            slots.next(&filled, &mut places);
            prop_assert_eq!(places[frame], Place { frame: frame as u32, slot: order[per_frame / 2] as u32 });
        }
    }
}

#[test]
fn among_many_frames_stripes_take_groups() {
    for per_frame in [256, 1000, 2048, 4096, 4100] {
        for (frames, group) in [(15, 1), (16, 2), (31, 2), (32, 4), (63, 4), (64, 8)] {
            // A stripe has at least eight groups.
            let group = [8, 4, 2, 1].into_iter().find(|&less| less <= group && 256 * less <= per_frame).unwrap();
            assert_eq!(
                order(&Slots::new(frames, per_frame), 1),
                along_stripes_by_hand(per_frame, group),
                "{per_frame}"
            );
        }
    }
}

/// Rows of every age are in any 32nd of a large frame, wherever it is cut.
#[test]
#[cfg_attr(miri, ignore = "Miri takes long")]
fn any_part_of_a_large_frame_spans_its_fill() {
    for frames in [8, 16, 32, 64, 512] {
        for per_frame in [1024, 1500, 4096, 5000] {
            let mut slots = Slots::new(frames, per_frame);
            slots.shuffle(0, &mut Generator::new(frames as u64));
            let mut age = vec![0; per_frame];
            order(&slots, 0).into_iter().enumerate().for_each(|(i, slot)| age[slot] = i);
            for part in age.windows(per_frame / 32) {
                let span = part.iter().max().unwrap_or(&0) - part.iter().min().unwrap_or(&0);
                assert!(span * 10 >= per_frame * 8, "{span} of {per_frame} among {frames} frames");
            }
        }
    }
}
