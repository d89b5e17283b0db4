//! Checksums: XXH3 with 64 bits, as 16 hexadecimal digits.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

/// Computes the checksum of bytes that come in pieces.
#[derive(Default)]
pub(crate) struct Checksum(XxHash3_64);

impl Checksum {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    pub(crate) fn finish(&self) -> String {
        format!("{:016x}", self.0.finish())
    }
}

pub(crate) fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", XxHash3_64::oneshot(bytes))
}
