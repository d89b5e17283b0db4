//! Lends the rows of a shard in memory to a store, without a copy.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::recording::shard::ShardRows;
use crate::rows::batch::Batch;
use crate::rows::element::{DType, Element};

/// Some rows of a shard.
struct LentRows<T> {
    shard: Arc<ShardRows>,
    bytes: Range<usize>,
    elements: PhantomData<fn() -> T>,
}

impl<T: Element> AsRef<[T]> for LentRows<T> {
    fn as_ref(&self) -> &[T] {
        bytemuck::cast_slice(&self.shard.bytes()[self.bytes.clone()])
    }
}

/// Makes a batch of some rows of a shard. The memory of the shard is freed with the last of its batches.
pub(crate) fn lend(shard: &Arc<ShardRows>, rows: Range<usize>, dtype: DType, features: usize) -> Batch {
    match dtype {
        DType::F32 => lend_as::<f32>(shard, rows, features),
        DType::F16 => lend_as::<f16>(shard, rows, features),
        DType::BF16 => lend_as::<bf16>(shard, rows, features),
        DType::U32 => lend_as::<u32>(shard, rows, features),
        DType::I64 => lend_as::<i64>(shard, rows, features),
    }
}

fn lend_as<T: Element>(shard: &Arc<ShardRows>, rows: Range<usize>, features: usize) -> Batch {
    let length = features * size_of::<T>();
    let bytes = rows.start * length..rows.end * length;
    let values = &shard.bytes()[bytes.clone()];
    if bytemuck::try_cast_slice::<u8, T>(values).is_ok() {
        let lent = LentRows::<T> { shard: shard.clone(), bytes, elements: PhantomData };
        return Batch::lent::<T, _>(lent, rows.len(), features);
    }
    // The header of another program may end anywhere. Then the rows are not aligned.
    let mut copy = vec![T::zeroed(); values.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut copy).copy_from_slice(values);
    Batch::lent::<T, _>(copy, rows.len(), features)
}
