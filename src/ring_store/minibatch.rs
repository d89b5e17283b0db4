//! The minibatch that a consumer gets: some rows of every component, in memory that the minibatch owns.

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};
use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2};

use crate::memory::part::Part;
use crate::rows::element::{DType, Element, sealed::Plain};
use crate::rows::layout::{Component, ComponentKey, Layout};
use crate::rows::names::{ComponentName, UnknownComponent};

/// Rows of every component, shuffled, in memory that the minibatch owns.
///
/// Row r of every component comes from the same token. Dropping the minibatch returns its frame to the store. Keeping the
/// minibatch costs the store only that memory. Small minibatches share a frame of [`Plan::frame_rows`](crate::Plan::frame_rows)
/// rows. A shared frame returns when its last minibatch is dropped. You can send a minibatch to another thread, and keep it
/// after its store is gone.
///
/// ```
/// use activation_store::RingStore;
/// use ndarray::Array2;
///
/// let store = RingStore::builder().component("attn", 4).component("mlp", 4).batch_size(8).window(32).build()?;
/// drop(store.extend(Array2::<f32>::zeros((40, 4)), "attn")?);
/// drop(store.extend(Array2::<f32>::ones((40, 4)), "mlp")?);
/// store.close();
/// for minibatch in store.minibatches().blocking() {
///     let minibatch = minibatch?;
///     assert_eq!(minibatch.view::<f32>("mlp")?.dim(), (8, 4)); // [row, feature]
///     assert_eq!(minibatch.stacked::<f32>()?.dim(), (8, 2, 4)); // [row, component, feature]
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Minibatch {
    part: Part,
    layout: Arc<Layout>,
    ordinal: u64,
}

impl Minibatch {
    pub(crate) fn new(part: Part, layout: Arc<Layout>, ordinal: u64) -> Self {
        Minibatch { part, layout, ordinal }
    }

    /// The number of rows: the batch size, or fewer in the last minibatch.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.part.len()
    }

    /// The minibatch's number in the sequence of all minibatches of the store, from 0.
    #[must_use]
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// The components, in order.
    #[must_use]
    pub fn components(&self) -> &[Component] {
        self.layout.components()
    }

    /// The rows of a component, `[row, feature]`. `component` is its number or name.
    ///
    /// # Errors
    /// [`ViewError`] if there is no such component, or its element type is not `T`.
    pub fn view<T: Element>(&self, component: impl ComponentKey) -> Result<ArrayView2<'_, T>, ViewError> {
        let component = self.typed::<T>(component)?;
        let shape = (self.rows(), self.components()[component].features);
        let values = bytemuck::cast_slice(self.bytes_of(component));
        Ok(ArrayView2::from_shape(shape, values).expect("a component is rows × features values"))
    }

    /// The rows of a component, `[row, feature]`, for changes in place, such as normalisation. `component` is its number or name.
    ///
    /// # Errors
    /// [`ViewError`] if there is no such component, or its element type is not `T`.
    pub fn view_mut<T: Element>(&mut self, component: impl ComponentKey) -> Result<ArrayViewMut2<'_, T>, ViewError> {
        let component = self.typed::<T>(component)?;
        let shape = (self.rows(), self.components()[component].features);
        let values = bytemuck::cast_slice_mut(self.part.component_mut(component));
        Ok(ArrayViewMut2::from_shape(shape, values).expect("a component is rows × features values"))
    }

    /// Copies the rows of a component as `f32`, `[row, feature]`, from any element type. `component` is its number or name.
    ///
    /// Rounds integers to the nearest `f32`.
    ///
    /// # Errors
    /// [`ViewError::Component`] if there is no such component.
    pub fn to_f32(&self, component: impl ComponentKey) -> Result<Array2<f32>, ViewError> {
        let component = self.layout.find(component)?;
        match self.components()[component].dtype {
            DType::F32 => self.converted::<f32>(component),
            DType::F16 => self.converted::<f16>(component),
            DType::BF16 => self.converted::<bf16>(component),
            DType::U32 => self.converted::<u32>(component),
            DType::I64 => self.converted::<i64>(component),
        }
    }

    fn converted<T: Element>(&self, component: usize) -> Result<Array2<f32>, ViewError> {
        Ok(self.view::<T>(component)?.mapv(Plain::nearest_f32))
    }

    /// All components, `[row, component, feature]`, without a copy.
    ///
    /// # Errors
    /// [`ViewError::Unequal`] if the components differ in width or element type, [`ViewError::Elements`] if the element type is not
    /// `T`.
    pub fn stacked<T: Element>(&self) -> Result<ArrayView3<'_, T>, ViewError> {
        self.typed::<T>(0)?;
        let components = self.components();
        let shape_of = |component: &Component| format!("{} × {}", component.features, component.dtype);
        let differs =
            |other: &Component| (other.features, other.dtype) != (components[0].features, components[0].dtype);
        if let Some(other) = components.iter().position(differs) {
            return Err(ViewError::Unequal {
                first: self.layout.name(0),
                first_shape: shape_of(&components[0]),
                other: self.layout.name(other),
                other_shape: shape_of(&components[other]),
            });
        }
        Ok(self.part.stacked(components[0].features))
    }

    /// The bytes of a component's rows, one row after the other, in this machine's byte order. Use this to hand the rows to another
    /// library.
    ///
    /// # Errors
    /// [`ViewError::Component`] if there is no such component.
    pub fn bytes(&self, component: impl ComponentKey) -> Result<&[u8], ViewError> {
        Ok(self.bytes_of(self.layout.find(component)?))
    }

    fn bytes_of(&self, component: usize) -> &[u8] {
        self.part.component(component)
    }

    fn typed<T: Element>(&self, component: impl ComponentKey) -> Result<usize, ViewError> {
        let component = self.layout.find(component)?;
        let dtype = self.components()[component].dtype;
        if dtype != T::DTYPE {
            return Err(ViewError::Elements { component: self.layout.name(component), dtype, asked: T::DTYPE });
        }
        Ok(component)
    }
}

impl fmt::Debug for Minibatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Minibatch {} ({} rows)", self.ordinal, self.rows())
    }
}

/// Returned when a component of a minibatch cannot be viewed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The minibatch has no such component.
    #[error(transparent)]
    Component(#[from] UnknownComponent),
    /// The component holds another element type.
    #[error("component {component} holds {dtype}, not {asked}; view it as {dtype}")]
    Elements {
        /// The component, by number and name.
        component: ComponentName,
        /// The element type of the component.
        dtype: DType,
        /// The element type that was asked for.
        asked: DType,
    },
    /// The components differ in width or element type, so they cannot be stacked.
    #[error("components {first} ({first_shape}) and {other} ({other_shape}) cannot be stacked; view them one by one")]
    Unequal {
        /// One component.
        first: ComponentName,
        /// The width and element type of `first`.
        first_shape: String,
        /// A component that differs from `first`.
        other: ComponentName,
        /// The width and element type of `other`.
        other_shape: String,
    },
}
