//! The order in which the slots of a frame are filled.

use rand::Rng;

use crate::ring::random::{below, shuffle};

/// Frames with fewer slots are filled in random order, larger ones along stripes.
pub(crate) const STRIPED: usize = 128;

/// Most stripes of a frame.
const STRIPES: usize = 32;

/// Fewest slots of a stripe, and fewest groups.
const STRIPE: usize = 8;

/// Where a row goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) frame: u32,
    pub(crate) slot: u32,
}

/// The orders in which the open frames are being filled.
#[derive(Debug)]
pub(crate) struct Slots {
    per_frame: usize,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// For each frame, its slots in order.
    Random(Vec<u8>),
    /// The slots in order, along the stripes, the same for all frames; and for each frame the slot that counts as the
    /// first, at the start of a group.
    Striped { slots: Vec<u32>, group: usize, firsts: Vec<u32> },
}

impl Slots {
    /// For `frames` frames of `per_frame` slots.
    pub(crate) fn new(frames: usize, per_frame: usize) -> Self {
        let order = if per_frame < STRIPED {
            Order::Random((0..frames).flat_map(|_| 0..per_frame as u8).collect())
        } else {
            let group = group(frames, per_frame);
            Order::Striped { slots: along_stripes(per_frame, group), group, firsts: vec![0; frames] }
        };
        Slots { per_frame, order }
    }

    /// Chooses the order of a frame's next fill.
    pub(crate) fn shuffle(&mut self, frame: usize, rng: &mut impl Rng) {
        match &mut self.order {
            Order::Random(slots) => {
                let slots = &mut slots[frame * self.per_frame..][..self.per_frame];
                slots.iter_mut().zip(0..).for_each(|(slot, i)| *slot = i);
                shuffle(slots, rng);
            }
            Order::Striped { group, firsts, .. } => {
                firsts[frame] = (below(self.per_frame.div_ceil(*group), rng) * *group) as u32;
            }
        }
    }

    /// Appends the next place of each frame, where `filled` rows are in it.
    pub(crate) fn next(&self, filled: &[u32], places: &mut Vec<Place>) {
        let frames = (0..).zip(filled);
        match &self.order {
            Order::Random(slots) => {
                let frames = frames.zip(slots.chunks_exact(self.per_frame));
                places.extend(frames.map(|((frame, &i), slots)| Place { frame, slot: slots[i as usize].into() }));
            }
            Order::Striped { slots, firsts, .. } => {
                let place = |((frame, &i), &first)| Place { frame, slot: self.rotated(slots[i as usize], first) };
                places.extend(frames.zip(firsts).map(place));
            }
        }
    }

    /// The slot of a frame's `i`-th row.
    pub(crate) fn slot(&self, frame: usize, i: u32) -> u32 {
        match &self.order {
            Order::Random(slots) => slots[frame * self.per_frame + i as usize].into(),
            Order::Striped { slots, firsts, .. } => self.rotated(slots[i as usize], firsts[frame]),
        }
    }

    /// A slot of a frame in which `first` counts as the first.
    #[inline]
    fn rotated(&self, slot: u32, first: u32) -> u32 {
        let room = self.per_frame as u32 - first;
        if slot < room { slot + first } else { slot - room }
    }
}

/// How many rows go to one stripe before the next has its turn.
///
/// Groups make for fewer places of memory that are written in turn. Where they have several rows, the rows that a frame
/// takes in sequence are far apart, and a stripe has many groups.
fn group(frames: usize, slots: usize) -> usize {
    let group = match frames {
        ..16 => 1,
        16..32 => 2,
        32..64 => 4,
        _ => 8,
    };
    group.min(power_of_two(slots / (STRIPES * STRIPE)))
}

/// The slots of a frame in the order in which it is filled.
fn along_stripes(slots: usize, group: usize) -> Vec<u32> {
    let stripes = power_of_two(slots / STRIPE).min(STRIPES);
    // Rows that come in whole groups for every stripe. The few others go to one stripe after the other.
    let grouped = slots - slots % (stripes * group);
    let turn = |i: usize| if i < grouped { i / group } else { i - grouped };
    let mut next = vec![0; stripes];
    let mut start = 0;
    for stripe in 0..stripes {
        // Neighbours have their turns far apart: a part that spans several stripes is mixed as well as one stripe.
        let turn = stripe.reverse_bits() >> (usize::BITS - stripes.ilog2());
        next[turn] = start;
        start += (slots / stripes + usize::from(turn < slots % stripes)) as u32;
    }
    let take = |i: usize| {
        let next = &mut next[turn(i) % stripes];
        *next += 1;
        *next - 1
    };
    (0..slots).map(take).collect()
}

/// The largest power of two that is not above `n`, but at least 1.
fn power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

#[cfg(test)]
mod tests;
