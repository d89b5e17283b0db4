//! Dealing: it chooses the frame and the slot of each row, and has the open frames. Pure, synchronous code.
//!
//! Whole rows come in, as one batch for each component. Each row goes to an open frame, which the seed decides. When a frame is
//! full, it leaves the folder, and an empty frame takes its place.

pub(crate) mod dealer;
pub(crate) mod frames;
pub(crate) mod random;
pub(crate) mod slots;
