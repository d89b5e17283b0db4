//! Writes and reads checkpoints: the state of the training after minibatch k, and the snapshot of the store at the same place.
//!
//! A checkpoint is a pair of `trainer-K.safetensors` and `snapshot-K` in one folder. The trainer's file is written first, so every
//! snapshot has one. The last two pairs stay.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use activation_store::{Form, Minibatches, SnapshotHandle, Snapshots};
use anyhow::{Context as _, Result, ensure};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::component::Component;

/// Says where checkpoints go, and how often.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    /// Minibatches between two checkpoints.
    every: u64,
    form: Form,
    /// The snapshot that is being written.
    pending: Option<SnapshotHandle>,
}

impl Checkpoints {
    pub(crate) fn new(dir: PathBuf, every: u64, form: Form) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir, every, form, pending: None })
    }

    /// Loads `components` from the newest whole pair. Returns its k and its snapshot, or `None` if there is no pair.
    pub(crate) fn load(&self, components: &mut [Component]) -> Result<Option<(u64, PathBuf)>> {
        let Some((k, snapshot)) = Snapshots::new(&self.dir).list()?.pop() else { return Ok(None) };
        let file = self.trainer(k);
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut load = || -> Result<()> {
            let (_, header) = SafeTensors::read_metadata(&bytes)?;
            let saved = header.metadata().as_ref().and_then(|about| about.get("plan")).cloned().unwrap_or_default();
            let plans = plans(components);
            ensure!(saved == plans, "it is of another run: {saved}, and this one is {plans}");
            let mut loader = Loader(SafeTensors::deserialize(&bytes)?);
            components.iter_mut().try_for_each(|component| component.visit(&mut loader))
        };
        load().with_context(|| format!("cannot resume from {}", file.display()))?;
        Ok(Some((k, snapshot)))
    }

    /// Writes a checkpoint if one is due after minibatch `k`. First waits until the checkpoint before is whole.
    pub(crate) async fn save(&mut self, k: u64, components: &mut [Component], minibatches: &Minibatches) -> Result<()> {
        if !k.is_multiple_of(self.every) {
            return Ok(());
        }
        self.finish().await?;
        let mut saver = Saver(Vec::new());
        components.iter_mut().try_for_each(|component| component.visit(&mut saver))?;
        saver.write(&self.trainer(k), plans(components))?;
        self.pending = Some(minibatches.snapshot(&self.dir, self.form)?);
        Ok(())
    }

    /// Waits until the last checkpoint is whole. Removes all pairs except the last two.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        pending.await?;
        for old in Snapshots::new(&self.dir).prune(2)? {
            let file = self.trainer(old);
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        Ok(())
    }

    fn trainer(&self, k: u64) -> PathBuf {
        self.dir.join(format!("trainer-{k}.safetensors"))
    }
}

/// Describes the SAEs, so that a checkpoint of another run is refused.
fn plans(components: &[Component]) -> String {
    let students = components.iter().flat_map(|component| &component.students);
    students.map(|student| format!("{}: {}", student.name, student.plan)).collect::<Vec<_>>().join("; ")
}

/// Visits all numbers of a trainer, to save or to load them.
pub(crate) trait Visitor {
    /// Visits numbers whose count is known.
    fn numbers<T: Number>(&mut self, name: &str, values: &mut [T]) -> Result<()>;
    /// Visits numbers whose count was saved with them.
    fn list<T: Number>(&mut self, name: &str, values: &mut Vec<T>) -> Result<()>;
}

/// A number of four or eight bytes.
pub(crate) trait Number: Copy + Default {
    const DTYPE: Dtype;
    fn write(self, bytes: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! number {
    ($($type:ty => $dtype:ident;)*) => {$(
        impl Number for $type {
            const DTYPE: Dtype = Dtype::$dtype;

            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                Some(<$type>::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}

number! {
    f32 => F32;
    f64 => F64;
    u64 => U64;
}

/// The name, the type, the count and the bytes of each list.
struct Saver(Vec<(String, Dtype, usize, Vec<u8>)>);

impl Saver {
    /// Writes the whole file, or none.
    fn write(self, file: &Path, plans: String) -> Result<()> {
        let views = self
            .0
            .iter()
            .map(|(name, dtype, count, bytes)| Ok((name.as_str(), TensorView::new(*dtype, vec![*count], bytes)?)));
        let about = [("plan".to_owned(), plans)].into();
        let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(about))?;
        let unfinished = file.with_extension("unfinished");
        let write = || -> std::io::Result<()> {
            let mut open = File::create(&unfinished)?;
            open.write_all(&bytes)?;
            open.sync_all()?;
            fs::rename(&unfinished, file)
        };
        write().with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Visitor for Saver {
    fn numbers<T: Number>(&mut self, name: &str, values: &mut [T]) -> Result<()> {
        let mut bytes = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| value.write(&mut bytes));
        self.0.push((name.to_owned(), T::DTYPE, values.len(), bytes));
        Ok(())
    }

    fn list<T: Number>(&mut self, name: &str, values: &mut Vec<T>) -> Result<()> {
        self.numbers(name, values)
    }
}

struct Loader<'a>(SafeTensors<'a>);

impl Visitor for Loader<'_> {
    fn numbers<T: Number>(&mut self, name: &str, values: &mut [T]) -> Result<()> {
        let mut saved = Vec::new();
        self.list(name, &mut saved)?;
        ensure!(saved.len() == values.len(), "{name}: {} numbers, not {}", saved.len(), values.len());
        values.copy_from_slice(&saved);
        Ok(())
    }

    fn list<T: Number>(&mut self, name: &str, values: &mut Vec<T>) -> Result<()> {
        let tensor = self.0.tensor(name)?;
        ensure!(tensor.dtype() == T::DTYPE, "{name} holds {:?}, not {:?}", tensor.dtype(), T::DTYPE);
        let numbers = tensor.data().chunks_exact(size_of::<T>()).map(|bytes| T::read(bytes).unwrap_or_default());
        values.clear();
        values.extend(numbers);
        Ok(())
    }
}
