//! Configures a store of fixed size.

use crate::rows::element::DType;

/// Configures a [`TensorStore`](crate::TensorStore). Made by [`TensorStore::builder`](crate::TensorStore::builder).
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct TensorStoreBuilder {
    pub(super) components: Vec<(String, usize, Option<DType>)>,
    pub(super) dtype: DType,
    pub(super) max_items: usize,
    pub(super) seed: u64,
}

impl TensorStoreBuilder {
    /// Adds a component with `features` values of the store's [`dtype`](Self::dtype) in each row. Components are numbered from 0.
    pub fn component(mut self, name: impl Into<String>, features: usize) -> Self {
        self.components.push((name.into(), features, None));
        self
    }

    /// Adds a component with an element type of its own.
    pub fn component_of(mut self, name: impl Into<String>, features: usize, dtype: DType) -> Self {
        self.components.push((name.into(), features, Some(dtype)));
        self
    }

    /// Sets the element type of components that have none of their own. Default: `f32`.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Sets how many rows of each component the store can hold. There is no default.
    pub fn max_items(mut self, rows: usize) -> Self {
        self.max_items = rows;
        self
    }

    /// Sets the seed of `shuffle` and of the order of epochs. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}
