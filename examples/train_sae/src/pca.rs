//! Principal components, with which the SAEs are compared.

use anyhow::{Context as _, Result};
use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::checkpoint::Visitor;

/// Sums up the mean and the covariance of rows, one minibatch after the other.
pub(crate) struct Covariance {
    rows: usize,
    sum: Array1<f64>,
    /// The sum of the products of the rows with themselves.
    products: Array2<f64>,
}

impl Covariance {
    pub(crate) fn new(width: usize) -> Self {
        Self { rows: 0, sum: Array1::zeros(width), products: Array2::zeros((width, width)) }
    }

    pub(crate) fn visit(&mut self, name: &str, visitor: &mut impl Visitor) -> Result<()> {
        let mut rows = [self.rows as u64];
        visitor.numbers(&format!("{name}.rows"), &mut rows)?;
        self.rows = rows[0] as usize;
        visitor.numbers(&format!("{name}.sum"), self.sum.as_slice_mut().context("contiguous")?)?;
        visitor.numbers(&format!("{name}.products"), self.products.as_slice_mut().context("contiguous")?)
    }

    /// Adds the rows of a minibatch. Sums the products within a minibatch in f32, and the minibatches in f64.
    pub(crate) fn add(&mut self, rows: ArrayView2<'_, f32>) {
        self.rows += rows.nrows();
        self.sum += &rows.sum_axis(Axis(0)).mapv(f64::from);
        self.products += &rows.t().dot(&rows).mapv(f64::from);
    }

    /// Returns the fraction of the variance of `rows` that is left unexplained by the first `components` principal components of the
    /// rows added so far.
    pub(crate) fn unexplained(&self, rows: ArrayView2<'_, f32>, components: usize) -> f64 {
        let (rows_seen, width) = (self.rows.max(1) as f64, self.sum.len());
        let mean = &self.sum / rows_seen;
        let covariance = DMatrix::from_fn(width, width, |i, j| self.products[[i, j]] / rows_seen - mean[i] * mean[j]);
        let SymmetricEigen { eigenvectors, eigenvalues } = covariance.symmetric_eigen();
        let mut order: Vec<_> = (0..width).collect();
        order.sort_by(|&a, &b| eigenvalues[b].total_cmp(&eigenvalues[a]));
        order.truncate(components);
        let basis = Array2::from_shape_fn((width, order.len()), |(i, j)| eigenvectors[(i, order[j])]);

        let centred = rows.mapv(f64::from) - &mean;
        let kept = centred.dot(&basis);
        let lost = squares(&centred) - squares(&kept);
        let own_mean = centred.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(width));
        lost / squares(&(centred - own_mean))
    }
}

fn squares(numbers: &Array2<f64>) -> f64 {
    numbers.iter().map(|x| x * x).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_explain_the_plane_the_rows_lie_in() {
        // Rows in a plane in three dimensions, with 100 times as much variance along (1, 1, 0) as along (0, 0, 1).
        let rows = Array2::from_shape_fn((400, 3), |(row, x)| {
            let (a, b) = ((row % 20) as f32 - 9.5, (row / 20) as f32 - 9.5);
            5.0 + [a * 10.0, a * 10.0, b * 2f32.sqrt()][x]
        });
        let mut covariance = Covariance::new(3);
        for batch in rows.axis_chunks_iter(Axis(0), 64) {
            covariance.add(batch);
        }
        let unexplained = |components| covariance.unexplained(rows.view(), components);
        assert!((unexplained(0) - 1.0).abs() < 1e-6);
        assert!((unexplained(1) - 1.0 / 101.0).abs() < 1e-6, "{}", unexplained(1));
        assert!(unexplained(2).abs() < 1e-6);
    }
}
