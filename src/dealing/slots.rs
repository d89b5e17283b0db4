//! The order in which the slots of a frame are filled.

use crate::dealing::random::{Generator, below, shuffle};

/// Frames with fewer slots are filled in random order. Other frames are filled along stripes.
pub(crate) const STRIPED: usize = 128;

/// The most stripes of a frame.
const STRIPES: usize = 32;

/// The fewest slots of a stripe. Also the fewest groups of a stripe, if a group has several rows.
const STRIPE: usize = 8;

/// The place that a row goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) frame: u32,
    pub(crate) slot: u32,
}

/// For each open frame, the order in which its slots are filled.
#[derive(Debug)]
pub(crate) struct Slots {
    per_frame: usize,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// The slots of each frame in the order of filling, frame after frame.
    Random(Vec<u8>),
    /// `slots` has the slots in the order of filling, along the stripes. It is the same for all frames. `firsts` has for each frame
    /// the slot that counts as slot 0, a multiple of `group`.
    Striped { slots: Vec<u32>, group: usize, firsts: Vec<u32> },
}

impl Slots {
    /// Makes the orders for `frames` frames of `per_frame` slots.
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
    pub(crate) fn shuffle(&mut self, frame: usize, rng: &mut Generator) {
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

    /// Appends the next place of each frame. `filled` says how many rows each frame has.
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

    /// The slot that a slot becomes in a frame whose slot `first` counts as slot 0.
    #[inline]
    fn rotated(&self, slot: u32, first: u32) -> u32 {
        let room = self.per_frame as u32 - first;
        if slot < room { slot + first } else { slot - room }
    }
}

/// The number of rows that go to one stripe before the next stripe has its turn: a group.
///
/// Larger groups mean that the writer writes to fewer places of memory in turn. A group has several rows only if each stripe has
/// many groups and there are many frames: then the rows that a frame takes are far apart in the sequence.
fn group(frames: usize, slots: usize) -> usize {
    let group = match frames {
        ..16 => 1,
        16..32 => 2,
        32..64 => 4,
        _ => 8,
    };
    group.min(power_of_two(slots / (STRIPES * STRIPE)))
}

/// The slots of a frame, in the order in which they are filled.
fn along_stripes(slots: usize, group: usize) -> Vec<u32> {
    let stripes = power_of_two(slots / STRIPE).min(STRIPES);
    // The first `grouped` rows give every stripe whole groups. The few rows after them go to the stripes one by one.
    let grouped = slots - slots % (stripes * group);
    let turn = |i: usize| if i < grouped { i / group } else { i - grouped };
    let mut next = vec![0; stripes];
    let mut start = 0;
    for stripe in 0..stripes {
        // Neighbouring stripes have turns that are far apart. So a part of the frame that spans several stripes is mixed as well as
        // one stripe.
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

/// The largest power of two that is at most `n`. Returns 1 if `n` is 0.
fn power_of_two(n: usize) -> usize {
    1 << n.max(1).ilog2()
}

#[cfg(test)]
mod tests;
