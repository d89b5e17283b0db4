//! JSON with a checksum: a value beside its checksum, or a line and the checksum of the line.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::disk::checksum::checksum;

/// Why sealed JSON cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It is not as it was written.
    Damaged(String),
    /// It has a newer version than this release reads.
    Newer(WrittenBy),
}

/// What every version of a sealed value has: the version, and the program that wrote it.
#[derive(Debug, Deserialize)]
pub(crate) struct WrittenBy {
    pub(crate) version: u32,
    #[serde(default)]
    pub(crate) written_by: String,
}

/// Writes `{"NAME":VALUE,"checksum":"…"}`. The checksum covers the value as compact JSON.
pub(crate) fn seal(name: &str, value: &impl Serialize) -> Vec<u8> {
    // This cannot fail: the values have only strings, numbers and lists.
    let value = serde_json::to_string(value).unwrap_or_default();
    let checksum = checksum(value.as_bytes());
    format!("{{\"{name}\":{value},\"checksum\":\"{checksum}\"}}").into_bytes()
}

/// Reads what [`seal`] has written, of this version.
pub(crate) fn open<T: Serialize + DeserializeOwned>(name: &str, version: u32, bytes: &[u8]) -> Result<T, Unusable> {
    let damaged = |reason: String| Unusable::Damaged(reason);
    let mut sealed: Value = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
    let value = sealed.get_mut(name).map(Value::take).ok_or_else(|| damaged(format!("missing field `{name}`")))?;
    let written = WrittenBy::deserialize(&value).map_err(|error| damaged(error.to_string()))?;
    // Another version may have other fields. So what follows reads only this one.
    let opened = serde_json::from_value::<T>(value);
    let is_as_written = |opened: &T| {
        let value = serde_json::to_vec(opened).unwrap_or_default();
        sealed.get("checksum").and_then(Value::as_str) == Some(&*checksum(&value))
    };
    match opened {
        Err(_) if written.version > version => Err(Unusable::Newer(written)),
        Err(error) => Err(damaged(error.to_string())),
        Ok(opened) if !is_as_written(&opened) => Err(damaged("its checksum does not match".to_owned())),
        Ok(_) if written.version > version => Err(Unusable::Newer(written)),
        Ok(_) if written.version != version => {
            Err(damaged(format!("its format is version {}, not {version}", written.version)))
        }
        Ok(opened) => Ok(opened),
    }
}

/// Writes a line of text, and a line `{"xxh3":"…"}` with its checksum.
pub(crate) fn seal_line(line: String) -> Vec<u8> {
    let checksum = checksum(line.as_bytes());
    format!("{line}\n{{\"xxh3\":\"{checksum}\"}}\n").into_bytes()
}

/// Returns the first of the lines that [`seal_line`] has written, or what is wrong with them.
pub(crate) fn open_line(text: &str) -> Result<&str, String> {
    #[derive(Deserialize)]
    struct Checksum {
        xxh3: String,
    }
    let mut lines = text.lines();
    let (first, second) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    match serde_json::from_str::<Checksum>(second) {
        Ok(Checksum { xxh3 }) if xxh3 == checksum(first.as_bytes()) => Ok(first),
        Ok(_) => Err("its checksum does not match".to_owned()),
        Err(error) => Err(format!("its second line is no checksum: {error}")),
    }
}
