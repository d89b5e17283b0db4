//! Where each component's rows lie in a frame.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::rows::batch::Batch;
use crate::rows::build_error::BuildError;
use crate::rows::element::DType;
use crate::rows::error::WriteError;
use crate::rows::index::IndexError;
use crate::rows::names::{ComponentName, UnknownComponent};

/// Every block starts at a multiple of this: the size of a cache line, and of the widest vector register.
pub(crate) const ALIGN: usize = 64;

/// One component of a store: its name, and the width and element type of its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The name, which is unique in the store.
    pub name: Arc<str>,
    /// The number of features of each row.
    pub features: usize,
    /// The element type of the rows.
    pub dtype: DType,
}

/// Describes the memory of `rows` rows of every component: a block `[rows, features]` for each component, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    components: Vec<Component>,
    by_name: HashMap<Arc<str>, usize>,
    offsets: Vec<usize>,
    rows: usize,
    bytes: usize,
}

impl Layout {
    pub(crate) fn new(components: &[Component], rows: usize) -> Result<Self, BuildError> {
        if components.is_empty() {
            return Err(BuildError::NoComponents);
        }
        let mut by_name = HashMap::with_capacity(components.len());
        for (number, component) in components.iter().enumerate() {
            if component.features == 0 {
                let what = format!("the number of features of component {:?}", component.name);
                return Err(BuildError::Zero { what: what.into() });
            }
            if by_name.insert(component.name.clone(), number).is_some() {
                return Err(BuildError::DuplicateName { name: component.name.to_string() });
            }
        }
        let mut offsets = Vec::with_capacity(components.len());
        let mut bytes = Some(0_usize);
        for component in components {
            offsets.push(bytes.unwrap_or(0));
            bytes = component
                .features
                .checked_mul(component.dtype.size())
                .and_then(|row| row.checked_mul(rows))
                .and_then(|block| block.checked_next_multiple_of(ALIGN))
                .and_then(|block| bytes?.checked_add(block))
                .filter(|&bytes| isize::try_from(bytes).is_ok());
        }
        let bytes = bytes.ok_or_else(|| BuildError::Overflow {
            what: "the memory",
            rows,
            row_bytes: components
                .iter()
                .fold(0, |sum: usize, c| sum.saturating_add(c.features.saturating_mul(c.dtype.size()))),
        })?;
        Ok(Layout { components: components.to_vec(), by_name, offsets, rows, bytes })
    }

    pub(crate) fn components(&self) -> &[Component] {
        &self.components
    }

    pub(crate) fn n_components(&self) -> usize {
        self.components.len()
    }

    /// The number of features of each component.
    pub(crate) fn widths(&self) -> Vec<usize> {
        self.components.iter().map(|component| component.features).collect()
    }

    /// The number of features of every component. An error if they differ.
    pub(crate) fn one_width(&self) -> Result<usize, IndexError> {
        let width = self.components[0].features;
        match self.components.iter().position(|component| component.features != width) {
            None => Ok(width),
            Some(other) => {
                let other_features = self.components[other].features;
                Err(IndexError::Unequal { first: 0, first_features: width, other, other_features })
            }
        }
    }

    /// The number of rows of every component.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The size of all blocks, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where the component's block starts, in bytes.
    pub(crate) fn offset(&self, component: usize) -> usize {
        self.offsets[component]
    }

    pub(crate) fn row_bytes(&self, component: usize) -> usize {
        self.components[component].features * self.components[component].dtype.size()
    }

    pub(crate) fn name(&self, component: usize) -> ComponentName {
        ComponentName { index: component, name: self.components[component].name.clone() }
    }

    pub(crate) fn unknown(&self, asked: String) -> UnknownComponent {
        let names: Vec<String> = (0..self.n_components()).map(|c| self.name(c).to_string()).collect();
        UnknownComponent { asked, known: names.join(", ") }
    }

    /// Finds the component that `key` names.
    pub(crate) fn find(&self, key: impl ComponentKey) -> Result<usize, UnknownComponent> {
        let found = match key.key() {
            Key::Number(number) => Some(number).filter(|&number| number < self.n_components()),
            Key::Name(name) => self.by_name.get(name).copied(),
        };
        found.ok_or_else(|| self.unknown(format!("{key:?}")))
    }

    /// Checks that `batch` can be stored as `component`.
    pub(crate) fn check(&self, batch: &Batch, component: usize) -> Result<(), WriteError> {
        let expected = &self.components[component];
        if batch.features() != expected.features && (batch.rows() > 0 || batch.features() > 0) {
            return Err(WriteError::Features {
                component: self.name(component),
                expected: expected.features,
                got: batch.features(),
                from_vec: batch.from_vec,
            });
        }
        if !batch.dtype().converts_to(expected.dtype) {
            return Err(WriteError::Elements {
                component: self.name(component),
                expected: expected.dtype,
                got: batch.dtype(),
            });
        }
        Ok(())
    }
}

/// The number or the name of a component. Sealed: implemented for `usize`, `&str`, `&String`, `&Arc<str>` and `&Component`.
pub trait ComponentKey: Copy + fmt::Debug + sealed::Sealed {}

impl ComponentKey for usize {}
impl ComponentKey for &str {}
impl ComponentKey for &String {}
impl ComponentKey for &Arc<str> {}
impl ComponentKey for &Component {}

/// What names a component.
#[derive(Debug)]
pub enum Key<'a> {
    Number(usize),
    Name(&'a str),
}

mod sealed {
    use std::sync::Arc;

    use super::{Component, Key};

    pub trait Sealed {
        fn key(&self) -> Key<'_>;
    }

    impl Sealed for usize {
        fn key(&self) -> Key<'_> {
            Key::Number(*self)
        }
    }

    impl Sealed for &str {
        fn key(&self) -> Key<'_> {
            Key::Name(self)
        }
    }

    impl Sealed for &String {
        fn key(&self) -> Key<'_> {
            Key::Name(self)
        }
    }

    impl Sealed for &Arc<str> {
        fn key(&self) -> Key<'_> {
            Key::Name(self)
        }
    }

    impl Sealed for &Component {
        fn key(&self) -> Key<'_> {
            Key::Name(&self.name)
        }
    }
}
