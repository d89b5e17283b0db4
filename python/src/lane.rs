//! Handing rows in: to the store itself, or on a lane of its own.

use std::sync::Arc;

use activation_store::{
    Batch, Component, Pass, Permit, Producer, Refused, RefusedPass, Reserve, RingStore, UnknownComponent, WriteError,
    WriteHandle,
};
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;

use crate::component::{Key, Spec, named, spec};
use crate::depot::Depot;
use crate::errors::OrRaise;
use crate::process::Home;
use crate::rows::{Incoming, Rows};
use crate::uncopied::Uncopied;
use crate::wait::{Deadline, Notice, wait_and_notice};
use crate::write::WriteOutcome;

/// Takes the rows of one model replica, and never confuses them with another's.
#[pyclass(frozen, module = "activation_store._native")]
pub(crate) struct Lane {
    end: Home<End>,
    intake: Arc<Intake>,
}

/// What to do while the queue is over its bound.
#[pyclass(frozen, eq, from_py_object, rename_all = "SCREAMING_SNAKE_CASE", module = "activation_store._native")]
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum IfFull {
    /// Queue all the same, at the end of the line.
    LineUp,
    /// Wait for room.
    Wait,
    /// Refuse the rows.
    Refuse,
}

#[pymethods]
impl Lane {
    /// The number of the component with that number or name.
    fn find(&self, component: Key) -> PyResult<usize> {
        self.end.get()?;
        component.find(&self.intake.components)
    }

    /// The component with that number or name: its name, features and dtype.
    fn component(&self, component: Key) -> PyResult<Spec> {
        self.end.get()?;
        spec(&self.intake.components, &component)
    }

    /// Hands rows in, and copies them first if they are not copied yet.
    #[pyo3(signature = (component, rows, if_full, timeout=None, notice=None))]
    fn extend(
        &self,
        py: Python<'_>,
        component: Key,
        rows: &Rows,
        if_full: IfFull,
        timeout: Option<f64>,
        notice: Option<Notice<'_>>,
    ) -> PyResult<WriteOutcome> {
        let end = self.end.get()?;
        let component = component.find(&self.intake.components)?;
        check(&self.intake.components, component, rows).or_raise()?;
        let reserve = end.reserve(component, rows.len()).or_raise()?;
        let deadline = Deadline::new(timeout)?;
        let handle = match self.intake.room(py, reserve, rows.len(), if_full, &deadline, notice, || Ok(()))? {
            Some(mut room) => match rows.take()? {
                Incoming::Batch(batch) => room.extend(batch).or_raise()?,
                Incoming::Uncopied(rows) => self.intake.copy_and_extend(py, room, rows)?,
            },
            None => {
                let batch = rows.take()?.into_batch(py, &self.intake.depot)?;
                end.extend(batch, component, if_full).or_raise()?
            }
        };
        Ok(WriteOutcome::new(handle, rows.len()))
    }

    /// Hands in the rows of all components that one forward pass gave: all of them, or none.
    #[pyo3(signature = (pass_, if_full, timeout=None, notice=None, value=None))]
    fn extend_pass(
        &self,
        py: Python<'_>,
        pass_: Vec<(Key, Py<Rows>)>,
        if_full: IfFull,
        timeout: Option<f64>,
        notice: Option<Notice<'_>>,
        value: Option<Vec<u8>>,
    ) -> PyResult<WriteOutcome> {
        let (pass, rows) = found_pass(&self.intake.components, pass_)?;
        let room = self.room_for_pass(py, rows, if_full, &Deadline::new(timeout)?, notice, || Ok(()))?;
        let pass = into_batches(py, pass, &self.intake.depot)?;
        Ok(WriteOutcome::new(self.end.get()?.hand_over(pass, room, if_full, value).or_raise()?, rows))
    }

    /// Tells the store that the lane is sent again from its first row.
    fn send_again(&self) -> PyResult<()> {
        match self.end.get()? {
            End::Own(store) => store.send_again(),
            End::Opened(producer) => producer.send_again(),
        }
        .or_raise()
    }

    /// How many components its store has.
    #[getter]
    fn n_components(&self) -> usize {
        self.intake.components.len()
    }

    /// Whether it takes no more rows.
    #[getter]
    pub(crate) fn closed(&self) -> PyResult<bool> {
        Ok(self.end.get()?.is_closed())
    }

    /// Copies rows that are handed in later, for a component: the caller may change its memory afterwards.
    fn stage(&self, py: Python<'_>, component: usize, rows: &Rows) -> PyResult<()> {
        self.end.get()?;
        check(&self.intake.components, component, rows).or_raise()?;
        rows.stage(py, &self.intake.depot)
    }

    /// Ends the lane, or for the store's own closes the store.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let end = self.end.get()?;
        py.detach(|| end.close());
        Ok(())
    }
}

impl Lane {
    /// Waits for room for a pass, if the caller is to. `check` is called now and then: its error ends the wait.
    pub(crate) fn room_for_pass(
        &self,
        py: Python<'_>,
        rows: usize,
        if_full: IfFull,
        deadline: &Deadline,
        notice: Option<Notice<'_>>,
        check: impl FnMut() -> PyResult<()> + Send,
    ) -> PyResult<Option<Permit>> {
        self.intake.room(py, self.end.get()?.reserve_pass(rows), rows, if_full, deadline, notice, check)
    }

    pub(crate) fn end(&self) -> PyResult<&End> {
        self.end.get()
    }

    pub(crate) fn components(&self) -> &[Component] {
        &self.intake.components
    }

    pub(crate) fn new(end: End, intake: Arc<Intake>) -> Self {
        Lane { end: Home::new(end), intake }
    }
}

/// Checks rows before they wait for room, or for others that belong to them.
pub(crate) fn check(components: &[Component], number: usize, rows: &Rows) -> Result<(), WriteError> {
    let (component, expected) = (named((number, &components[number])), &components[number]);
    if rows.features != expected.features && (rows.len() > 0 || rows.features > 0) {
        return Err(WriteError::Features {
            component,
            expected: expected.features,
            got: rows.features,
            from_vec: false,
        });
    }
    if rows.dtype != expected.dtype && !(rows.dtype.is_float() && expected.dtype.is_float()) {
        return Err(WriteError::Elements { component, expected: expected.dtype, got: rows.dtype });
    }
    Ok(())
}

/// The rows of a pass as batches; copies those that are not copied yet.
pub(crate) fn into_batches(py: Python<'_>, pass: Numbered, depot: &Arc<Depot>) -> PyResult<Vec<(usize, Batch)>> {
    pass.into_iter().map(|(component, rows)| Ok((component, rows.get().take()?.into_batch(py, depot)?))).collect()
}

/// A pass by the numbers of its components.
pub(crate) type Numbered = Vec<(usize, Py<Rows>)>;

/// Finds the components of a pass and checks its rows, before they wait for room. Returns how many there are of each.
pub(crate) fn found_pass(components: &[Component], pass: Vec<(Key, Py<Rows>)>) -> PyResult<(Numbered, usize)> {
    let find = |(component, rows): (Key, _)| Ok((component.find(components)?, rows));
    let pass = pass.into_iter().map(find).collect::<PyResult<Numbered>>()?;
    let rows = check_pass(components, &pass).or_raise()?;
    Ok((pass, rows))
}

/// Checks the rows of a pass. Returns how many there are of each component.
fn check_pass(components: &[Component], pass: &[(usize, Py<Rows>)]) -> Result<usize, WriteError> {
    let name = |number: usize| named((number, &components[number]));
    let mut first = None;
    for (place, (number, rows)) in pass.iter().enumerate() {
        let rows = rows.get();
        check(components, *number, rows)?;
        if pass[..place].iter().any(|(earlier, _)| earlier == number) {
            return Err(WriteError::PassDoubles { doubled: name(*number) });
        }
        let (first, first_rows) = *first.get_or_insert((*number, rows.len()));
        if rows.len() != first_rows {
            let (first, component) = (name(first), name(*number));
            return Err(WriteError::PassRows { first, first_rows, component, rows: rows.len() });
        }
    }
    let missing = (0..components.len()).find(|number| pass.iter().all(|(other, _)| other != number));
    match (first, missing) {
        (Some((_, rows)), None) => Ok(rows),
        (_, missing) => Err(WriteError::PassLacks { missing: name(missing.unwrap_or(0)) }),
    }
}

/// The end of a lane that takes rows.
pub(crate) enum End {
    /// The lane that a store has of its own.
    Own(RingStore),
    /// A lane that was opened.
    Opened(Producer),
}

impl End {
    fn is_closed(&self) -> bool {
        match self {
            End::Own(store) => store.is_closed(),
            End::Opened(producer) => producer.is_closed(),
        }
    }

    fn extend(&self, batch: Batch, component: usize, if_full: IfFull) -> Result<WriteHandle, Refused> {
        match (self, if_full) {
            (End::Own(store), IfFull::Refuse) => store.try_extend(batch, component),
            (End::Own(store), _) => store.extend(batch, component),
            (End::Opened(producer), IfFull::Refuse) => producer.try_extend(batch, component),
            (End::Opened(producer), _) => producer.extend(batch, component),
        }
    }

    /// Hands in a pass that was checked, with the room that it waited for. Never waits.
    pub(crate) fn hand_over(
        &self,
        pass: Vec<(usize, Batch)>,
        room: Option<Permit>,
        if_full: IfFull,
        value: Option<Vec<u8>>,
    ) -> Result<WriteHandle, RefusedPass> {
        let mut gathered = self.begin_pass();
        value.into_iter().for_each(|value| gathered.attach(value));
        for (component, batch) in pass {
            if let Err(Refused { error, batch }) = gathered.put(component, batch) {
                return Err(RefusedPass::new(error, vec![batch]));
            }
        }
        match (room, if_full) {
            (Some(room), _) => room.commit(gathered),
            (None, IfFull::Refuse) => gathered.try_commit(),
            (None, _) => gathered.commit(),
        }
    }

    fn reserve(&self, component: usize, rows: usize) -> Result<Reserve, UnknownComponent> {
        match self {
            End::Own(store) => store.reserve(component, rows),
            End::Opened(producer) => producer.reserve(component, rows),
        }
    }

    fn begin_pass(&self) -> Pass {
        match self {
            End::Own(store) => store.begin_pass(),
            End::Opened(producer) => producer.begin_pass(),
        }
    }

    fn reserve_pass(&self, rows: usize) -> Reserve {
        match self {
            End::Own(store) => store.reserve_pass(rows),
            End::Opened(producer) => producer.reserve_pass(rows),
        }
    }

    fn close(&self) {
        match self {
            End::Own(store) => store.close(),
            End::Opened(producer) => producer.close(),
        }
    }
}

/// What the lanes of a store share on this side.
pub(crate) struct Intake {
    pub(crate) components: Vec<Component>,
    pub(crate) depot: Arc<Depot>,
    /// Whether callers wait for room: not where the store refuses instead.
    pub(crate) waits: bool,
    /// Whether rows may be handed in piece by piece: only where no later piece can be refused.
    pub(crate) in_pieces: bool,
}

impl Intake {
    /// Waits for room, if the caller is to, and keeps it for all rows of the call. An error of `check` ends the wait.
    #[expect(clippy::too_many_arguments, reason = "what `extend` takes")]
    fn room(
        &self,
        py: Python<'_>,
        mut reserve: Reserve,
        rows: usize,
        if_full: IfFull,
        deadline: &Deadline,
        notice: Option<Notice<'_>>,
        mut check: impl FnMut() -> PyResult<()> + Send,
    ) -> PyResult<Option<Permit>> {
        if !self.waits || if_full != IfFull::Wait {
            return Ok(None);
        }
        let room = wait_and_notice(py, deadline, notice, |slice| match check() {
            Ok(()) => reserve.wait_timeout(slice).map(OrRaise::or_raise),
            Err(error) => Some(Err(error)),
        })?;
        room.ok_or_else(|| no_room(rows, deadline, "the consumer lags or has stopped"))?.map(Some)
    }

    /// Copies rows and hands them in. Where it may, piece by piece, so that the writer finds each in cache.
    fn copy_and_extend(&self, py: Python<'_>, mut room: Permit, mut rows: Uncopied) -> PyResult<WriteHandle> {
        if !self.in_pieces {
            return room.extend(rows.copy_all(py, &self.depot)?).or_raise();
        }
        let mut handles = Vec::with_capacity(1);
        while rows.left() > 0 || handles.is_empty() {
            if !handles.is_empty() {
                py.check_signals()?;
            }
            rows.copy_pieces(py, &self.depot, |batch| {
                handles.push(room.extend(batch).or_raise()?);
                Ok(())
            })?;
        }
        Ok(WriteHandle::all(handles))
    }
}

pub(crate) fn no_room(rows: usize, deadline: &Deadline, why: &str) -> PyErr {
    let limit = deadline.seconds.unwrap_or_default();
    PyTimeoutError::new_err(format!("no room for {rows} rows within {limit} s: {why}. Nothing was written"))
}
