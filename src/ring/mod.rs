//! The ring: which frame and which slot each row goes to, and the open frames that receive it. Pure and synchronous.
//!
//! Whole rows come in, as one batch for each component. Each row is dealt to an open frame, from the seed. A frame that is
//! full goes out; an empty one takes its place.

pub(crate) mod deal;
pub(crate) mod random;
#[allow(clippy::module_inception, reason = "the ring is the main type of its folder")]
pub(crate) mod ring;
pub(crate) mod slots;
