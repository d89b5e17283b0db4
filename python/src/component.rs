//! Components as Python names them.

use activation_store::{Component, ComponentName, UnknownComponent, ValueCounts};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::errors::OrRaise;

/// A component as Python gives it: name, features, element type.
pub(crate) type Spec = (String, usize, String);

/// A component's number, where negative ones count from the end, or its name.
pub(crate) enum Key {
    Number(isize),
    Name(String),
}

impl<'py> FromPyObject<'_, 'py> for Key {
    type Error = PyErr;

    fn extract(key: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(name) = key.extract() {
            return Ok(Key::Name(name));
        }
        let wrong = |_| PyTypeError::new_err(format!("a component is a number or a name, not {}", key.get_type()));
        key.extract().map(Key::Number).map_err(wrong)
    }
}

impl Key {
    /// The component's number.
    pub(crate) fn find(&self, components: &[Component]) -> PyResult<usize> {
        let found = match self {
            Key::Number(number @ 0..) => Some(number.unsigned_abs()),
            Key::Number(number) => components.len().checked_sub(number.unsigned_abs()),
            Key::Name(name) => components.iter().position(|component| *component.name == **name),
        };
        let unknown = || UnknownComponent {
            asked: match self {
                Key::Number(number) => number.to_string(),
                Key::Name(name) => format!("{name:?}"),
            },
            known: (0..).zip(components).map(named).map(|name| name.to_string()).collect::<Vec<_>>().join(", "),
        };
        found.filter(|&number| number < components.len()).ok_or_else(unknown).or_raise()
    }
}

/// The component with that number or name, as Python gives it.
pub(crate) fn spec(components: &[Component], key: &Key) -> PyResult<Spec> {
    let component = &components[key.find(components)?];
    Ok((component.name.to_string(), component.features, component.dtype.to_string()))
}

pub(crate) fn named((index, component): (usize, &Component)) -> ComponentName {
    ComponentName { index, name: component.name.clone() }
}

/// Rows of one component whose values overflowed, and rows whose values were not finite: the component's name, and both counts.
pub(crate) type OddValues = (String, u64, u64);

/// The components that have such rows.
pub(crate) fn odd_values<'a>(counts: impl Iterator<Item = (&'a Component, ValueCounts)>) -> Vec<OddValues> {
    let odd = counts.filter(|(_, counts)| *counts != ValueCounts::default());
    odd.map(|(component, counts)| (component.name.to_string(), counts.overflowed, counts.not_finite)).collect()
}
