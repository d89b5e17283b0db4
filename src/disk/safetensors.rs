//! A safetensors file with one tensor, which other programs can read: a header in JSON, then the rows, which start on a page.

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::rows::element::DType;

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

fn name_of(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::U32 => "U32",
        DType::I64 => "I64",
    }
}

fn offsets(dtype: DType, [rows, features]: [u64; 2]) -> [u64; 2] {
    [0, rows.saturating_mul(features).saturating_mul(dtype.size() as u64)]
}

/// Makes the header of a file with one tensor of the shape `[rows, features]`. The tensor's name is `rows`.
pub(crate) fn header(dtype: DType, rows: u64, features: usize) -> Vec<u8> {
    let shape = [rows, features as u64];
    let tensor = Tensor { dtype: name_of(dtype).to_owned(), shape, data_offsets: offsets(dtype, shape) };
    // JSON can express every string and number, so this never fails.
    let mut json = serde_json::to_vec(&Header { rows: tensor }).unwrap_or_default();
    // The format allows spaces after the JSON text.
    let length = (8 + json.len() as u64).next_multiple_of(PAGE) - 8;
    json.resize(length as usize, b' ');
    [&length.to_le_bytes()[..], &json].concat()
}

/// Reads a header, and returns the shape `[rows, features]`. An error says what is wrong with the header.
pub(crate) fn read_header(file: &mut dyn Read, dtype: DType) -> io::Result<[u64; 2]> {
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
    if found != name_of(dtype) {
        return Err(invalid(format!("it holds {found}, not {}", name_of(dtype))));
    }
    if data_offsets != offsets(dtype, shape) {
        return Err(invalid(format!("its rows would lie at {data_offsets:?}, not at {:?}", offsets(dtype, shape))));
    }
    Ok(shape)
}
