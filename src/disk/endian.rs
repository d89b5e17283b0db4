//! The byte order of rows in files: little-endian, as safetensors defines it.

use std::borrow::Cow;

/// Whether this processor has the other byte order.
const SWAPS: bool = cfg!(target_endian = "big");

/// Returns the elements of memory, of `size` bytes each, as a file has them. On little-endian processors these are the same bytes, without a copy.
pub(crate) fn to_file(elements: &[u8], size: usize) -> Cow<'_, [u8]> {
    let mut bytes = Cow::Borrowed(elements);
    if SWAPS {
        swap(bytes.to_mut(), size);
    }
    bytes
}

/// Turns the bytes of a file into elements of `size` bytes, in place. On little-endian processors this changes nothing.
pub(crate) fn from_file(bytes: &mut [u8], size: usize) {
    if SWAPS {
        swap(bytes, size);
    }
}

/// Reverses the bytes of each element.
fn swap(bytes: &mut [u8], size: usize) {
    bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swapped(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        swap(&mut bytes, size);
        bytes
    }

    #[test]
    fn a_swap_turns_big_endian_elements_into_little_endian_ones_and_back() {
        let (half, single, integer) = ([1u16, 0x3f80], [1.5f32, -2.25], [-2i64, 1 << 40]);
        let (big, little) = (half.map(u16::to_be_bytes).concat(), half.map(u16::to_le_bytes).concat());
        assert_eq!([swapped(&big, 2), swapped(&little, 2)], [little, big]);
        let (big, little) = (single.map(f32::to_be_bytes).concat(), single.map(f32::to_le_bytes).concat());
        assert_eq!([swapped(&big, 4), swapped(&little, 4)], [little, big]);
        let (big, little) = (integer.map(i64::to_be_bytes).concat(), integer.map(i64::to_le_bytes).concat());
        assert_eq!([swapped(&big, 8), swapped(&little, 8)], [little, big]);
    }

    #[test]
    fn files_are_little_endian_on_every_processor() {
        let values = [1.5f32, -2.25];
        let little = values.map(f32::to_le_bytes).concat();
        let mut bytes = to_file(bytemuck::cast_slice(&values), 4).into_owned();
        assert_eq!(bytes, little);
        from_file(&mut bytes, 4);
        assert_eq!(bytes, bytemuck::cast_slice::<f32, u8>(&values));
    }
}
