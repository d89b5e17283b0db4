//! The ring: it chooses the frame and the slot of each row, and has the open frames. Pure, synchronous code.
//!
//! The ring takes whole rows, as one batch for each component. It deals each row to an open frame. The seed decides which one. When
//! a frame is full, it leaves the ring, and an empty frame takes its place.

pub(crate) mod deal;
pub(crate) mod random;
#[allow(clippy::module_inception, reason = "the ring is the main type of its folder")]
pub(crate) mod ring;
pub(crate) mod slots;
