//! What every store can do.

use std::sync::Arc;

use ndarray::{Array2, ArrayD};

use crate::dealing::random::Generator;
use crate::rows::batch::{Batch, Refused, RefusedPass, one_row};
use crate::rows::error::WriteError;
use crate::rows::index::Index;
use crate::rows::index::IndexError;
use crate::waiting::handle::WriteHandle;

/// Stores activations: rows of one or more components.
///
/// The trait is object safe, so the hook of a model can take `&dyn ActivationStore`. All methods take `&self`, so several hooks
/// can write at once. You can implement the trait for a store of your own:
///
/// ```
/// use std::sync::Mutex;
///
/// use activation_store::{
///     ActivationStore, ActivationStoreExt, Batch, Index, IndexError, Refused, TestData, UnknownComponent, WriteHandle,
///     Written,
/// };
/// use ndarray::ArrayD;
///
/// /// Keeps every row in a list.
/// struct ListStore {
///     rows: Mutex<Vec<Vec<Vec<f32>>>>, // by component
/// }
///
/// impl ActivationStore for ListStore {
///     fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
///         let mut rows = self.rows.lock().unwrap();
///         let Some(list) = rows.get_mut(component) else {
///             let unknown = UnknownComponent { asked: component.to_string(), known: format!("{} lists", rows.len()) };
///             return Err(Refused { error: unknown.into(), batch });
///         };
///         let written = Written { rows: batch.rows(), first_row: list.len() as u64 };
///         list.extend(batch.to_f32().rows().into_iter().map(|row| row.to_vec()));
///         Ok(WriteHandle::ready(Ok(written)))
///     }
///
///     fn empty(&self) {
///         self.rows.lock().unwrap().iter_mut().for_each(Vec::clear);
///     }
///
///     fn n_components(&self) -> usize {
///         self.rows.lock().unwrap().len()
///     }
///
///     fn current_activations_stored_per_component(&self) -> Vec<usize> {
///         self.rows.lock().unwrap().iter().map(Vec::len).collect()
///     }
///
///     fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError> {
///         let rows = self.rows.lock().unwrap();
///         let features: Vec<usize> = rows.iter().map(|list| list.first().map_or(0, Vec::len)).collect();
///         let len = rows.iter().map(Vec::len).min().unwrap_or(0);
///         index.select(len, &features, |row, component, out| {
///             out.copy_from_slice(&rows[component][row]);
///             Ok(())
///         })
///     }
/// }
///
/// let store = ListStore { rows: Mutex::new(vec![Vec::new(), Vec::new()]) };
/// store.fill_with_test_data(TestData { n_components: 2, input_features: 8, ..TestData::default() })?;
/// assert_eq!(store.len(), 16);
/// assert_eq!(store.get((3, 1).into())?.shape(), [8]);
/// assert!(store.append(vec![0.0_f32; 8].into(), 2).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait ActivationStore: Send + Sync {
    /// Takes a batch, `[rows, features]`, of a component. Components are numbered from 0.
    ///
    /// # Errors
    /// [`Refused`] gives the batch back with the reason. The handle reports later failures.
    fn extend(&self, batch: Batch, component: usize) -> Result<WriteHandle, Refused>;

    /// Takes one row of a component.
    ///
    /// # Errors
    /// Same as [`extend`](Self::extend), and [`WriteError::NotOneRow`] if `row` is not one row.
    fn append(&self, row: Batch, component: usize) -> Result<WriteHandle, Refused> {
        self.extend(one_row(row)?, component)
    }

    /// Takes the rows of all components that one forward pass produced. The stores of this crate take the whole pass or nothing.
    ///
    /// The default implementation is not atomic. It calls [`extend`](Self::extend) for one component after the other. If a batch is
    /// refused, the rows of the components before it stay in the store.
    ///
    /// # Errors
    /// [`RefusedPass`] gives back the batches that were not taken, with the reason.
    fn extend_pass(&self, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
        let mut handles = Vec::with_capacity(pass.len());
        let mut pass = pass.into_iter();
        while let Some((component, batch)) = pass.next() {
            match self.extend(batch, component) {
                Ok(handle) => handles.push(handle),
                Err(Refused { error, batch }) => {
                    let batches = [batch].into_iter().chain(pass.map(|(_, batch)| batch)).collect();
                    return Err(RefusedPass { error, batches });
                }
            }
        }
        Ok(WriteHandle::all(handles))
    }

    /// Discards all rows.
    fn empty(&self);

    /// Returns the number of components.
    fn n_components(&self) -> usize;

    /// Returns how many rows of each component are stored, in the order of the components.
    fn current_activations_stored_per_component(&self) -> Vec<usize>;

    /// Returns how many rows [`get`](Self::get) can read: the rows that are stored of every component.
    fn len(&self) -> usize {
        self.current_activations_stored_per_component().into_iter().min().unwrap_or(0)
    }

    /// Returns whether [`len`](Self::len) is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the values at an index as `f32`. The axes are row, component and feature. [`Index`] says what an index can be.
    /// [`Index::select`] helps you to implement this method.
    ///
    /// # Errors
    /// [`IndexError`] if the values cannot be returned. If the index is past the end of an axis, the error has the length of the axis.
    fn get(&self, index: Index) -> Result<ArrayD<f32>, IndexError>;

    /// Puts the rows in a random order if the store keeps an order. The default implementation does nothing.
    fn shuffle(&self) {}
}

/// Adds methods to every store. A store cannot override them.
pub trait ActivationStoreExt: ActivationStore {
    /// Writes `data.n_batches` batches to each of the first `data.n_components` components, and waits for each write. The values are
    /// uniform in `[0, 1)`. Each call writes the same values.
    ///
    /// # Errors
    /// [`WriteError`] of the first write that fails. For example, the store is full.
    ///
    /// # Blocking
    /// Blocks while the store has no room. A bounded store that is too small and has no consumer blocks for ever.
    fn fill_with_test_data(&self, data: TestData) -> Result<(), WriteError> {
        let mut rng = Generator::new(0);
        for _ in 0..data.n_batches {
            for component in 0..data.n_components {
                let rows = Array2::from_shape_simple_fn((data.batch_size, data.input_features), || rng.unit());
                self.extend(rows.into(), component)?.wait()?;
            }
        }
        Ok(())
    }
}

impl<S: ActivationStore + ?Sized> ActivationStoreExt for S {}

/// Says how much [`fill_with_test_data`](ActivationStoreExt::fill_with_test_data) writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestData {
    /// Batches for each component. Default: 1.
    pub n_batches: usize,
    /// Rows of a batch. Default: 16.
    pub batch_size: usize,
    /// Components. Default: 1.
    pub n_components: usize,
    /// Features of a row. Default: 256.
    pub input_features: usize,
}

impl Default for TestData {
    fn default() -> Self {
        TestData { n_batches: 1, batch_size: 16, n_components: 1, input_features: 256 }
    }
}

/// Calls each method of the trait on another store: `inner` of `store`.
macro_rules! forward {
    ($store:ident => $inner:expr) => {
        fn extend(&$store, batch: Batch, component: usize) -> Result<WriteHandle, Refused> {
            $crate::store::ActivationStore::extend($inner, batch, component)
        }

        fn append(&$store, row: Batch, component: usize) -> Result<WriteHandle, Refused> {
            $crate::store::ActivationStore::append($inner, row, component)
        }

        fn extend_pass(&$store, pass: Vec<(usize, Batch)>) -> Result<WriteHandle, RefusedPass> {
            $crate::store::ActivationStore::extend_pass($inner, pass)
        }

        fn empty(&$store) {
            $crate::store::ActivationStore::empty($inner);
        }

        fn n_components(&$store) -> usize {
            $crate::store::ActivationStore::n_components($inner)
        }

        fn current_activations_stored_per_component(&$store) -> Vec<usize> {
            $crate::store::ActivationStore::current_activations_stored_per_component($inner)
        }

        fn len(&$store) -> usize {
            $crate::store::ActivationStore::len($inner)
        }

        fn is_empty(&$store) -> bool {
            $crate::store::ActivationStore::is_empty($inner)
        }

        fn get(&$store, index: Index) -> Result<ArrayD<f32>, IndexError> {
            $crate::store::ActivationStore::get($inner, index)
        }

        fn shuffle(&$store) {
            $crate::store::ActivationStore::shuffle($inner);
        }
    };
}
pub(crate) use forward;

impl<S: ActivationStore + ?Sized> ActivationStore for Box<S> {
    forward!(self => &**self);
}

impl<S: ActivationStore + ?Sized> ActivationStore for Arc<S> {
    forward!(self => &**self);
}

impl<S: ActivationStore + ?Sized> ActivationStore for &S {
    forward!(self => &**self);
}
