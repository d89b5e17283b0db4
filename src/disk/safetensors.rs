//! A safetensors file with one tensor, which other programs can read: a header in JSON, then the rows, which start on a page.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// The rows start at a multiple of this, in bytes.
const PAGE: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Header {
    rows: Tensor,
}

#[derive(Serialize, Deserialize)]
struct Tensor {
    dtype: String,
    shape: [u64; 2],
    data_offsets: [u64; 2],
}

/// An element type, as the format names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) name: &'static str,
    /// The size of an element, in bytes.
    pub(crate) size: usize,
}

fn offsets(stored: Stored, [rows, features]: [u64; 2]) -> [u64; 2] {
    [0, rows.saturating_mul(features).saturating_mul(stored.size as u64)]
}

/// Makes the header of a file with one tensor of the shape `[rows, features]`. The tensor's name is `rows`.
pub(crate) fn header(stored: Stored, rows: u64, features: usize) -> Vec<u8> {
    let shape = [rows, features as u64];
    let tensor = Tensor { dtype: stored.name.to_owned(), shape, data_offsets: offsets(stored, shape) };
    // JSON can express every string and number, so this never fails.
    let mut json = serde_json::to_vec(&Header { rows: tensor }).unwrap_or_default();
    // The format allows spaces after the JSON text.
    let length = (8 + json.len() as u64).next_multiple_of(PAGE) - 8;
    json.resize(length as usize, b' ');
    [&length.to_le_bytes()[..], &json].concat()
}

/// Reads a header, and returns the shape `[rows, features]`. An error says what is wrong with the header.
pub(crate) fn read_header(file: &mut dyn Read, stored: Stored) -> io::Result<[u64; 2]> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > 1 << 20 {
        return Err(invalid(format!("its header would have {length} bytes")));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json)?;
    let Header { rows: Tensor { dtype: found, shape, data_offsets } } = serde_json::from_slice(&json)?;
    if found != stored.name {
        return Err(invalid(format!("it holds {found}, not {}", stored.name)));
    }
    if data_offsets != offsets(stored, shape) {
        return Err(invalid(format!("its rows would lie at {data_offsets:?}, not at {:?}", offsets(stored, shape))));
    }
    Ok(shape)
}
