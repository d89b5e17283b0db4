//! The names of lanes that have ended, for as long as a training runs: few bytes for each, and cheap to clone. Plain data.

use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twox_hash::XxHash3_64;

/// A chunk with so many names is split in two. A clone shares the chunks.
const CHUNK: usize = 256;

/// The fingerprints of names, and how many lanes of each name have ended.
///
/// A fingerprint has 64 bits. If two names had the same one, the store would take a new lane for one that has ended, and refuse its
/// rows. For a million ended names and a million new ones, the probability of this is 5 in 100 million.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EndedNames {
    /// Fingerprints and numbers of lanes, in ascending order. No chunk is empty.
    chunks: Vec<Arc<Vec<(u64, u32)>>>,
}

fn fingerprint(name: &str) -> u64 {
    XxHash3_64::oneshot(name.as_bytes())
}

impl EndedNames {
    /// Notes that a lane of this name has ended.
    pub(crate) fn insert(&mut self, name: &str) {
        self.add(fingerprint(name), 1);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Whether a lane of this name has ended.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.find(fingerprint(name)).1.is_ok()
    }

    /// Forgets one lane of this name. Returns whether there was one.
    pub(crate) fn take(&mut self, name: &str) -> bool {
        let (chunk, place) = self.find(fingerprint(name));
        let Ok(place) = place else { return false };
        let lanes = Arc::make_mut(&mut self.chunks[chunk]);
        lanes[place].1 -= 1;
        if lanes[place].1 == 0 {
            lanes.remove(place);
            if lanes.is_empty() {
                self.chunks.remove(chunk);
            }
        }
        true
    }

    /// The chunk where the fingerprint is or belongs, and its place there as of a binary search.
    fn find(&self, fingerprint: u64) -> (usize, Result<usize, usize>) {
        let chunk = self.chunks.partition_point(|chunk| chunk[0].0 <= fingerprint).saturating_sub(1);
        let search = |chunk: &Arc<Vec<(u64, u32)>>| chunk.binary_search_by_key(&fingerprint, |&(other, _)| other);
        (chunk, self.chunks.get(chunk).map_or(Err(0), search))
    }

    fn add(&mut self, fingerprint: u64, lanes: u32) {
        if self.chunks.is_empty() {
            self.chunks.push(Arc::new(vec![(fingerprint, lanes)]));
            return;
        }
        let (chunk, place) = self.find(fingerprint);
        let names = Arc::make_mut(&mut self.chunks[chunk]);
        match place {
            Ok(place) => names[place].1 = names[place].1.saturating_add(lanes),
            Err(place) => names.insert(place, (fingerprint, lanes)),
        }
        if names.len() == CHUNK {
            let second = names.split_off(CHUNK / 2);
            names.shrink_to_fit();
            self.chunks.insert(chunk + 1, Arc::new(second));
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied())
    }
}

/// The fingerprints as one string of hexadecimal digits, 16 for each, in ascending order; and what has ended more than once.
#[derive(Serialize, Deserialize)]
struct Written {
    fingerprints: String,
    /// The number of a fingerprint in the list, and how many lanes of this name have ended.
    repeated: Vec<(usize, u32)>,
}

impl Serialize for EndedNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut written = Written { fingerprints: String::new(), repeated: Vec::new() };
        for (n, (fingerprint, lanes)) in self.iter().enumerate() {
            written.fingerprints.push_str(&format!("{fingerprint:016x}"));
            if lanes > 1 {
                written.repeated.push((n, lanes));
            }
        }
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for EndedNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { fingerprints, repeated } = Written::deserialize(deserializer)?;
        let parse = |digits: &[u8]| {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 16)?;
            u64::from_str_radix(digits, 16).ok()
        };
        let fingerprints: Option<Vec<u64>> = fingerprints.as_bytes().chunks(16).map(parse).collect();
        let fingerprints =
            fingerprints.ok_or_else(|| D::Error::custom("a fingerprint is not 16 hexadecimal digits"))?;
        let mut names: Vec<(u64, u32)> = fingerprints.into_iter().map(|fingerprint| (fingerprint, 1)).collect();
        for (n, lanes) in repeated {
            let name = names.get_mut(n).filter(|_| lanes > 0);
            name.ok_or_else(|| D::Error::custom(format!("there is no fingerprint number {n}")))?.1 = lanes;
        }
        let mut ended = EndedNames::default();
        names.into_iter().for_each(|(fingerprint, lanes)| ended.add(fingerprint, lanes));
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lane_is_taken_once_and_what_was_written_is_read() {
        let name = |n: usize| format!("document {n}");
        let mut ended = EndedNames::default();
        for n in 0..3000 {
            ended.insert(&name(n));
            if n % 7 == 0 {
                ended.insert(&name(n));
            }
        }
        let clone = ended.clone();
        let json = serde_json::to_string(&ended).unwrap();
        // 16 digits for each name, and a little for each one of two lanes.
        assert!(json.len() < 3000 * 16 + 429 * 12 + 50, "{}", json.len());
        let mut read: EndedNames = serde_json::from_str(&json).unwrap();
        for ended in [&mut ended, &mut read] {
            for n in (0..3000).rev() {
                assert!(ended.contains(&name(n)) && ended.take(&name(n)));
                assert_eq!(ended.contains(&name(n)), n % 7 == 0);
                assert_eq!(ended.take(&name(n)), n % 7 == 0);
                assert!(!ended.take(&name(n)));
            }
            assert!(ended.chunks.is_empty());
        }
        assert_eq!(clone.iter().map(|(_, lanes)| lanes).sum::<u32>(), 3000 + 429);
        let of_two = "00000000000000010000000000000002";
        for (fingerprints, repeated) in
            [(&of_two[1..], ""), ("000000000000000g", ""), (of_two, "[2,3]"), (of_two, "[0,0]")]
        {
            let damaged = format!("{{\"fingerprints\":\"{fingerprints}\",\"repeated\":[{repeated}]}}");
            assert!(serde_json::from_str::<EndedNames>(&damaged).is_err(), "{damaged}");
        }
    }
}
