//! The rows of a frame that a consumer has: all rows of the frame, or a part that shares the frame with other parts.
//!
//! ```text
//! frame  ┌──── block 0 ────┬──── block 1 ────┐
//! rows   │ a  a │ b  b │ … │ a  a │ b  b │ … │     parts a, b, …: the same rows of every block
//!        └──────┴──────┴───┴──────┴──────┴───┘
//! ```

use std::fmt;
use std::sync::Arc;

use ndarray::{ArrayView3, ShapeBuilder};

use crate::memory::frame::Frame;
use crate::memory::pool::FrameHome;
use crate::rows::element::Element;
use crate::rows::layout::Layout;

/// Some rows of a frame, the same rows of every component. They belong to this part only.
///
/// When the last part of a frame is dropped, the frame goes home.
pub(crate) struct Part {
    memory: Memory,
    first: usize,
    rows: usize,
}

enum Memory {
    /// The only part of its frame. `None` once the frame has gone home.
    Whole(Option<Frame>, Arc<dyn FrameHome>),
    /// A part that shares its frame with other parts.
    Shared(Arc<SharedFrame>),
}

/// A frame with several parts.
struct SharedFrame {
    /// `None` once the frame has gone home.
    frame: Option<Frame>,
    home: Arc<dyn FrameHome>,
}

impl Drop for SharedFrame {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            self.home.give_back(frame);
        }
    }
}

impl Part {
    /// Makes a part of the first `rows` rows of a frame. The frame has no other part, and goes back to `home`.
    pub(crate) fn whole(frame: Frame, rows: usize, home: Arc<dyn FrameHome>) -> Self {
        debug_assert!(rows <= frame.layout().rows());
        Part { memory: Memory::Whole(Some(frame), home), first: 0, rows }
    }

    /// Takes out the first `rows` rows, or all if there are fewer, and returns them as a new part.
    pub(crate) fn split_front(&mut self, rows: usize) -> Part {
        let rows = rows.min(self.rows);
        if let Memory::Whole(frame, home) = &mut self.memory {
            self.memory = Memory::Shared(Arc::new(SharedFrame { frame: frame.take(), home: home.clone() }));
        }
        let memory = match &self.memory {
            Memory::Shared(shared) => Memory::Shared(shared.clone()),
            Memory::Whole(_, home) => Memory::Whole(None, home.clone()),
        };
        let front = Part { memory, first: self.first, rows };
        self.first += rows;
        self.rows -= rows;
        front
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    fn frame(&self) -> Option<&Frame> {
        match &self.memory {
            Memory::Whole(frame, _) => frame.as_ref(),
            Memory::Shared(shared) => shared.frame.as_ref(),
        }
    }

    /// Where a component's rows start in the frame, and their length, both in bytes.
    fn span(&self, layout: &Layout, component: usize) -> (usize, usize) {
        let width = layout.row_bytes(component);
        (layout.offset(component) + self.first * width, self.rows * width)
    }

    /// A component's rows.
    pub(crate) fn component(&self, component: usize) -> &[u8] {
        let Some(frame) = self.frame() else { return &[] };
        let (start, len) = self.span(frame.layout(), component);
        // SAFETY: the rows are within the frame. They belong to this part only, so nothing writes to them while `&self` is
        // borrowed: other parts have other rows, and the frame gives no access while it has parts.
        unsafe { std::slice::from_raw_parts(frame.start().add(start).as_ptr(), len) }
    }

    /// A component's rows.
    pub(crate) fn component_mut(&mut self, component: usize) -> &mut [u8] {
        let Some(frame) = self.frame() else { return &mut [] };
        let (start, len) = self.span(frame.layout(), component);
        // SAFETY: as in `component`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(frame.start().add(start).as_ptr(), len) }
    }

    /// A row of a component.
    pub(crate) fn row(&self, component: usize, n: usize) -> &[u8] {
        let rows = self.component(component);
        let width = rows.len() / self.rows.max(1);
        &rows[n * width..][..width]
    }

    /// All components, `[row, component, feature]`.
    ///
    /// # Panics
    /// Panics if a component does not have `features` features of type `T`.
    pub(crate) fn stacked<T: Element>(&self, features: usize) -> ArrayView3<'_, T> {
        let Some(frame) = self.frame() else {
            return ArrayView3::from_shape((0, 0, 0), &[]).expect("no values need no memory");
        };
        let layout = frame.layout();
        let components = layout.n_components();
        let alike = layout.components().iter().all(|other| (other.features, other.dtype) == (features, T::DTYPE));
        assert!(alike, "stacked components are alike");
        let block = layout.bytes() / components / size_of::<T>();
        let shape = (self.rows, components, features).strides((features, block, 1));
        let (start, _) = self.span(layout, 0);
        // SAFETY: the view reaches only the rows of this part in every block, and `component` explains why that is sound. All
        // components are alike, so the blocks lie at equal distances. Blocks, and rows of `T`, are aligned for `T`.
        unsafe { ArrayView3::from_shape_ptr(shape, frame.start().add(start).as_ptr().cast()) }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Memory::Whole(frame, home) = &mut self.memory
            && let Some(frame) = frame.take()
        {
            home.give_back(frame);
        }
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Part({} rows)", self.rows)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::rows::element::DType;
    use crate::rows::layout::Component;

    #[derive(Default)]
    struct Home(Mutex<Vec<Frame>>);

    impl FrameHome for Home {
        fn give_back(&self, frame: Frame) {
            self.0.lock().unwrap().push(frame);
        }
    }

    #[test]
    fn parts_have_rows_of_their_own_and_the_last_takes_the_frame_home() {
        let component = |name: &str| Component { name: name.into(), features: 3, dtype: DType::F32 };
        let layout = Arc::new(Layout::new(&[component("a"), component("b")], 10).unwrap());
        let home = Arc::new(Home::default());
        let frame = Frame::allocate_one(&layout, "test").unwrap();
        let mut rest = Part::whole(frame, 8, home.clone());
        let mut parts: Vec<Part> = [3, 1, 3, 5].map(|rows| rest.split_front(rows)).into();
        assert_eq!(parts.iter().map(Part::len).collect::<Vec<_>>(), [3, 1, 3, 1]);
        assert_eq!(rest.len(), 0);
        drop(rest);
        std::thread::scope(|scope| {
            for (value, part) in (1..).zip(&mut parts) {
                scope.spawn(move || (0..2).for_each(|component| part.component_mut(component).fill(value)));
            }
        });
        for (value, part) in (1_u8..).zip(&parts) {
            assert!((0..2).all(|component| part.component(component).iter().all(|&byte| byte == value)));
            assert!(part.row(1, part.len() - 1).iter().all(|&byte| byte == value));
            let expected = f32::from_ne_bytes([value; 4]);
            let stacked = part.stacked::<f32>(3);
            assert_eq!(stacked.dim(), (part.len(), 2, 3));
            assert!(stacked.iter().all(|&x| x == expected));
        }
        while let Some(part) = parts.pop() {
            assert!(home.0.lock().unwrap().is_empty());
            drop(part);
        }
        let frame = home.0.lock().unwrap().pop().unwrap();
        assert!(frame.row(0, 9).iter().all(|&byte| byte == 0));
        // Without a split, the frame comes back as well.
        drop(Part::whole(frame, 10, home.clone()));
        assert_eq!(home.0.lock().unwrap().len(), 1);
    }
}
