//! Rows on disk, which are recorded once and replayed many times.
//!
//! Passes come in through a [`recorder::Recorder`], one for each lane. It writes them as whole, checksummed
//! [shards](shard::ShardInfo). A [`recording::Recording`] verifies and reads the shards. A [`replay::Replay`] gives them out in
//! a seeded order.

pub(crate) mod buffers;
pub(crate) mod catch_up;
pub(crate) mod entrance;
pub(crate) mod error;
pub(crate) mod feed;
pub(crate) mod lane_end;
pub(crate) mod lane_writer;
pub(crate) mod lent;
pub(crate) mod load;
pub(crate) mod recorder;
pub(crate) mod recorder_builder;
pub(crate) mod recorder_pass;
pub(crate) mod recorder_store;
#[expect(clippy::module_inception, reason = "the folder is named after its main type")]
pub(crate) mod recording;
pub(crate) mod replay;
pub(crate) mod reserve;
pub(crate) mod room;
pub(crate) mod sealer;
pub(crate) mod shard;
pub(crate) mod shard_writer;
pub(crate) mod tee;
pub(crate) mod tee_pass;
