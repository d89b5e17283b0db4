//! A pass: gathered component by component, and checked here for every store.

use crate::rows::batch::{Batch, Refused, RefusedPass};
use crate::rows::error::WriteError;
use crate::rows::layout::{ComponentKey, Layout};

/// Finds the component of a batch, and checks that the batch fits it.
pub(crate) fn check(layout: &Layout, component: impl ComponentKey, batch: Batch) -> Result<(usize, Batch), Refused> {
    let found = layout.find(component).map_err(WriteError::from);
    match found.and_then(|component| layout.check(&batch, component).map(|()| component)) {
        Ok(component) => Ok((component, batch)),
        Err(error) => Err(Refused { error, batch }),
    }
}

/// The batches of a pass as they come, one component after the other.
#[derive(Debug)]
pub(crate) struct Gathered {
    batches: Vec<Option<Batch>>,
    /// The components in the order in which they came.
    order: Vec<usize>,
}

impl Gathered {
    pub(crate) fn new(layout: &Layout) -> Self {
        let components = layout.n_components();
        Gathered { batches: (0..components).map(|_| None).collect(), order: Vec::with_capacity(components) }
    }

    /// The components in the order in which they came.
    pub(crate) fn order(&self) -> &[usize] {
        &self.order
    }

    /// Adds the batch of a component. On an error, everything stays as it was.
    pub(crate) fn put(
        &mut self,
        layout: &Layout,
        component: impl ComponentKey,
        batch: impl Into<Batch>,
    ) -> Result<(), Refused> {
        let (component, batch) = check(layout, component, batch.into())?;
        if let Err(error) = self.check_fits(layout, component, batch.rows()) {
            return Err(Refused { error, batch });
        }
        self.batches[component] = Some(batch);
        self.order.push(component);
        Ok(())
    }

    fn check_fits(&self, layout: &Layout, component: usize, rows: usize) -> Result<(), WriteError> {
        if self.batches[component].is_some() {
            return Err(WriteError::PassDoubles { doubled: layout.name(component) });
        }
        let first = self.order.first().and_then(|&first| Some((first, self.batches[first].as_ref()?.rows())));
        match first {
            Some((first, first_rows)) if first_rows != rows => Err(WriteError::PassRows {
                first: layout.name(first),
                first_rows,
                component: layout.name(component),
                rows,
            }),
            _ => Ok(()),
        }
    }

    /// Gathers the batches of a pass. On an error, returns all of them.
    pub(crate) fn all<K: ComponentKey, B: Into<Batch>>(
        layout: &Layout,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<Self, RefusedPass> {
        let mut gathered = Gathered::new(layout);
        let mut pass = pass.into_iter();
        while let Some((component, batch)) = pass.next() {
            if let Err(Refused { error, batch }) = gathered.put(layout, component, batch) {
                let mut batches = gathered.take_back();
                batches.push(batch);
                batches.extend(pass.map(|(_, batch)| batch.into()));
                return Err(RefusedPass { error, batches });
            }
        }
        Ok(gathered)
    }

    /// Checks that every component has come.
    pub(crate) fn whole(mut self, layout: &Layout) -> Result<WholePass, RefusedPass> {
        self.take_whole().ok_or_else(|| RefusedPass { error: self.lacks(layout), batches: self.take_back() })
    }

    /// The error for a pass of which a component has not come.
    pub(crate) fn lacks(&self, layout: &Layout) -> WriteError {
        let missing = self.batches.iter().position(Option::is_none).unwrap_or(0);
        WriteError::PassLacks { missing: layout.name(missing) }
    }

    /// Takes the pass out if every component has come.
    pub(crate) fn take_whole(&mut self) -> Option<WholePass> {
        if self.batches.iter().any(Option::is_none) {
            return None;
        }
        let order = std::mem::take(&mut self.order);
        Some(WholePass { batches: self.batches.iter_mut().filter_map(Option::take).collect(), order })
    }

    /// Takes out the batches, in the order in which they came.
    pub(crate) fn take_back(&mut self) -> Vec<Batch> {
        self.order.drain(..).filter_map(|component| self.batches[component].take()).collect()
    }
}

/// A whole pass: a batch of each component, in the order of the components, all with equally many rows.
#[derive(Debug)]
pub(crate) struct WholePass {
    batches: Vec<Batch>,
    /// The components in the order in which the caller gave them. Empty if it is theirs.
    order: Vec<usize>,
}

impl WholePass {
    /// Gathers and checks a pass.
    pub(crate) fn new<K: ComponentKey, B: Into<Batch>>(
        layout: &Layout,
        pass: impl IntoIterator<Item = (K, B)>,
    ) -> Result<Self, RefusedPass> {
        Gathered::all(layout, pass)?.whole(layout)
    }

    /// Makes a pass of batches that came one by one: one of each component, in order, all with equally many rows.
    pub(crate) fn joined(batches: impl Iterator<Item = Batch>) -> Self {
        WholePass { batches: batches.collect(), order: Vec::new() }
    }

    pub(crate) fn n_components(&self) -> usize {
        self.batches.len()
    }

    /// The batch of a component.
    pub(crate) fn batch(&self, component: usize) -> &Batch {
        &self.batches[component]
    }

    /// The number of rows of each component.
    pub(crate) fn rows(&self) -> usize {
        self.batches.first().map_or(0, Batch::rows)
    }

    pub(crate) fn into_batches(self) -> Vec<Batch> {
        self.batches
    }

    /// Makes two passes that share the memory of the batches.
    pub(crate) fn share(self) -> (Self, Self) {
        let (first, second) = self.batches.into_iter().map(Batch::share).unzip();
        (WholePass { batches: first, order: self.order.clone() }, WholePass { batches: second, order: self.order })
    }

    /// The batches with the numbers of their components, in the order in which the caller gave them.
    pub(crate) fn into_given(self) -> Vec<(usize, Batch)> {
        if self.order.is_empty() {
            return self.batches.into_iter().enumerate().collect();
        }
        let mut batches: Vec<Option<Batch>> = self.batches.into_iter().map(Some).collect();
        self.order.iter().filter_map(|&component| Some((component, batches[component].take()?))).collect()
    }

    /// Returns the batches to the caller, in the order in which the caller gave them.
    pub(crate) fn refused(self, error: WriteError) -> RefusedPass {
        RefusedPass { error, batches: self.into_given().into_iter().map(|(_, batch)| batch).collect() }
    }
}
