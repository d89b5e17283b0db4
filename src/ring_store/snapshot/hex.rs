//! Bytes as hexadecimal digits, in JSON.

use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

type Bytes = Option<Arc<[u8]>>;

pub(crate) fn serialize<S: Serializer>(value: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = value.iter().flat_map(|value| value.iter());
    let digits: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&digits)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let digits = String::deserialize(deserializer)?;
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Bytes = digits.as_bytes().chunks(2).map(|digits| pair(digits).filter(|_| digits.len() == 2)).collect();
    bytes.map(Some).ok_or_else(|| D::Error::custom(format!("{digits:?} is not an even number of hexadecimal digits")))
}
