//! Elements are kept bit for bit, or are converted when they come in.
#![allow(clippy::unwrap_used)]

mod common;

use activation_store::{Batch, DType, Element, IndexError, RingStore, TensorStore};
use common::watchdog;
use half::{bf16, f16};
use ndarray::{Array2, s};

/// Passes rows of two values through a store of one component. Returns the rows in the order of their arrival.
fn through<T: Element, U: Element>(values: &[T], seed: u64) -> Vec<U> {
    let batch = Batch::from_vec(values.to_vec(), 2).unwrap();
    let store = RingStore::builder()
        .component_of("a", 2, U::DTYPE)
        .component_of("row", 1, DType::U32)
        .batch_size(4)
        .window(16)
        .seed(seed)
        .build()
        .unwrap();
    let rows = batch.rows();
    drop(store.extend(batch, 0).unwrap());
    drop(store.extend(Array2::from_shape_fn((rows, 1), |(row, _)| row as u32), 1).unwrap());
    store.close();
    let mut out: Vec<(u32, Vec<U>)> = Vec::new();
    for minibatch in store.minibatches().blocking() {
        let minibatch = minibatch.unwrap();
        let rows = minibatch.view::<u32>(1).unwrap();
        let values = minibatch.view::<U>(0).unwrap();
        out.extend(rows.iter().copied().zip(values.rows().into_iter().map(|row| row.to_vec())));
    }
    out.sort_by_key(|(row, _)| *row);
    // The tensor store has code of its own.
    let tensor = TensorStore::builder().component_of("a", 2, U::DTYPE).max_items(rows).build().unwrap();
    drop(tensor.extend(Batch::from_vec(values.to_vec(), 2).unwrap(), 0).unwrap());
    let mut from_tensor: Vec<Vec<U>> = tensor
        .epoch(rows)
        .unwrap()
        .flat_map(|minibatch| {
            let view = minibatch.view::<U>(0).unwrap();
            view.rows().into_iter().map(|row| row.to_vec()).collect::<Vec<_>>()
        })
        .collect();
    let mut sorted: Vec<Vec<U>> = out.iter().map(|(_, row)| row.clone()).collect();
    let text = |row: &Vec<U>| format!("{row:?}");
    from_tensor.sort_by_key(text);
    sorted.sort_by_key(text);
    assert_eq!(format!("{sorted:?}"), format!("{from_tensor:?}"));
    out.into_iter().flat_map(|(_, row)| row).collect()
}

/// Returns 66 numbers: ordinary ones, infinities, subnormals, and NaNs with a payload.
fn floats() -> Vec<f32> {
    let bits = [
        0,
        0x8000_0000,
        1,
        0x7f7f_ffff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        0xffc1_2345,
        0x7fa5_5555,
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x3380_0000,
        0x477f_f000,
        0x4780_0000,
    ];
    let special = bits.into_iter().map(f32::from_bits);
    special.chain((0..50).map(|i| (i as f32 - 25.0) * 1.234_567)).collect()
}

#[test]
fn f32_passes_bit_for_bit_nans_and_all() {
    watchdog(|| {
        let out: Vec<f32> = through(&floats(), 1);
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out), bits(&floats()));
    });
}

#[test]
fn halves_pass_bit_for_bit() {
    watchdog(|| {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let out: Vec<f16> = through(&halves, 2);
        assert!(out.iter().zip(&halves).all(|(a, b)| a.to_bits() == b.to_bits()));
        let halves: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let out: Vec<bf16> = through(&halves, 3);
        assert!(out.iter().zip(&halves).all(|(a, b)| a.to_bits() == b.to_bits()));
    });
}

#[test]
fn integers_pass_as_they_are() {
    watchdog(|| {
        let ids: Vec<i64> = vec![0, -1, i64::MIN, i64::MAX, 1 << 53, (1 << 53) + 1, 42, -7];
        assert_eq!(through::<i64, i64>(&ids, 4), ids);
        let ids: Vec<u32> = vec![0, 1, u32::MAX, 1 << 24, (1 << 24) + 1, 7];
        assert_eq!(through::<u32, u32>(&ids, 5), ids);
    });
}

#[test]
fn rows_of_any_type_can_be_had_as_they_are_or_as_f32() {
    watchdog(|| {
        let ids = Array2::from_elem((3, 1), (1_i64 << 53) + 1);
        let batch = Batch::from(ids.clone());
        assert_eq!(batch.view::<i64>().unwrap(), ids);
        assert!(batch.view::<f32>().is_none());
        let builder = RingStore::builder().component_of("id", 1, DType::I64).component_of("half", 2, DType::F16);
        let store = builder.component_of("brain", 2, DType::BF16).component("act", 2).batch_size(3).window(3).build();
        let store = store.unwrap();
        drop(store.extend(batch, "id").unwrap());
        for component in ["half", "brain", "act"] {
            drop(store.extend(Array2::from_elem((3, 2), 1.5_f32), component).unwrap());
        }
        store.close();
        let minibatch = store.minibatches().blocking().next().unwrap().unwrap();
        for component in ["half", "brain", "act"] {
            assert_eq!(minibatch.to_f32(component).unwrap(), Array2::from_elem((3, 2), 1.5), "{component}");
        }
        assert_eq!(minibatch.to_f32("id").unwrap(), ids.mapv(|id| id as f32));
        assert!(minibatch.to_f32(4).is_err());
    });
}

/// Fails unless the values are equal. Any NaN equals any other NaN.
fn assert_same(got: f32, expected: f32, from: f32) {
    assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{from}: {got}, not {expected}");
}

#[test]
fn floats_are_converted_to_nearest_on_the_way_in() {
    watchdog(|| {
        let values = floats();
        for (got, from) in through::<f32, f16>(&values, 1).into_iter().zip(&values) {
            assert_same(got.to_f32(), f16::from_f32(*from).to_f32(), *from);
        }
        for (got, from) in through::<f32, bf16>(&values, 1).into_iter().zip(&values) {
            assert_same(got.to_f32(), bf16::from_f32(*from).to_f32(), *from);
        }
        let halves: Vec<f16> = values.iter().map(|&value| f16::from_f32(value)).collect();
        for (got, from) in through::<f16, f32>(&halves, 1).into_iter().zip(&halves) {
            assert_same(got, from.to_f32(), from.to_f32());
        }
        for (got, from) in through::<f16, bf16>(&halves, 1).into_iter().zip(&halves) {
            assert_same(got.to_f32(), bf16::from_f32(from.to_f32()).to_f32(), from.to_f32());
        }
        let halves: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        for (got, from) in through::<bf16, f32>(&halves, 1).into_iter().zip(&halves) {
            assert_same(got, from.to_f32(), from.to_f32());
        }
        for (got, from) in through::<bf16, f16>(&halves, 1).into_iter().zip(&halves) {
            assert_same(got.to_f32(), f16::from_f32(from.to_f32()).to_f32(), from.to_f32());
        }
    });
}

#[test]
fn batches_of_different_types_mix_in_one_component() {
    watchdog(|| {
        let store = TensorStore::builder().dtype(DType::BF16).component("a", 2).max_items(9).build().unwrap();
        drop(store.extend(Array2::<f32>::from_elem((3, 2), 1.5), 0).unwrap());
        drop(store.extend(Array2::<f16>::from_elem((3, 2), f16::from_f32(2.5)), 0).unwrap());
        drop(store.extend(Array2::<bf16>::from_elem((3, 2), bf16::from_f32(3.5)), 0).unwrap());
        let got: Vec<f32> = store.get(s![.., 0, 0]).unwrap().into_iter().collect();
        assert_eq!(got, [1.5, 1.5, 1.5, 2.5, 2.5, 2.5, 3.5, 3.5, 3.5]);
        assert_eq!(store.components()[0].dtype, DType::BF16);
    });
}

#[test]
fn get_does_not_make_floats_of_integers() {
    watchdog(|| {
        let store = TensorStore::builder().component_of("id", 1, DType::I64).max_items(9).build().unwrap();
        drop(store.extend(Array2::<i64>::zeros((3, 1)), 0).unwrap());
        let error = store.get(0).unwrap_err();
        assert!(matches!(error, IndexError::Integers { component: 0, dtype: DType::I64 }));
        assert!(error.to_string().contains("view a minibatch as i64"), "{error}");
    });
}
