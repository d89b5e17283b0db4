//! Private parts, for the crate's own benchmarks. Not part of the API: anything here may change at any time.
#![allow(missing_docs, missing_debug_implementations)]

use crate::dealing::dealer::Dealer;
use crate::dealing::slots::Place;
use crate::memory::copy::{RowCopier, Slots};

/// Deals rows to frames, without any memory to copy them to.
pub struct Dealing {
    dealer: Dealer,
    places: Vec<Place>,
}

impl Dealing {
    pub fn new(frames: usize, slots: usize) -> Self {
        Dealing { dealer: Dealer::new(frames, slots, 1), places: Vec::new() }
    }

    /// Deals `rows` rows, and returns where the last went.
    pub fn deal(&mut self, rows: usize) -> Option<(u32, u32)> {
        self.places.clear();
        while self.places.len() < rows {
            self.dealer.deal(rows - self.places.len(), &mut self.places);
        }
        self.places.last().map(|place| (place.frame, place.slot))
    }
}

/// Copies rows to frames of `slots` rows that lie in one piece of memory, to where they were last dealt.
pub fn copy(rows: &[u8], width: usize, dealing: &Dealing, slots: usize, memory: &mut [u8], streaming: bool) {
    struct Dealt<'a> {
        memory: &'a mut [u8],
        places: &'a [Place],
        slots: usize,
        width: usize,
    }
    impl Slots for Dealt<'_> {
        #[inline]
        fn slot(&mut self, i: usize) -> &mut [u8] {
            let Place { frame, slot } = self.places[i];
            &mut self.memory[(frame as usize * self.slots + slot as usize) * self.width..][..self.width]
        }
    }
    RowCopier::new(streaming).copy(rows, width, &mut Dealt { memory, places: &dealing.places, slots, width });
}
