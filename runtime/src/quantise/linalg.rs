//! The factor that GPTQ needs of a Hessian, blocked so that nearly all of it is matrix products.
//!
//! GPTQ (Frantar et al. 2022, section 3.3, step 3) takes the upper Cholesky factor `U` of the inverse, `H^-1 = U^T U`. With `H`
//! factored from its last row up, `H = R R^T` with `R` upper triangular, that is `U = R^-1`: one factorisation and one
//! triangular inverse, and no inverse of `H` whose rounding could make it indefinite.

use gemm::Parallelism;
use rayon::prelude::*;

/// Rows and columns of a block.
const BLOCK: usize = 64;

/// A square matrix `[n, n]`, row-major, of which the upper triangle counts.
pub(super) struct Upper {
    pub n: usize,
    pub elems: Vec<f64>,
}

/// `out += sign * a * b` for row-major matrices with rows `*_stride` apart: `a` is `[m, k]`, `b` is `[k, n]`.
///
/// # Panics
/// If a slice is too short.
fn add_product(
    [m, n, k]: [usize; 3],
    (out, out_stride): (&mut [f64], usize),
    (a, a_stride): (&[f64], usize),
    (b, b_stride): (&[f64], usize),
    sign: f64,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(out.len() >= (m - 1) * out_stride + n && a.len() >= (m - 1) * a_stride + k);
    assert!(b.len() >= (k - 1) * b_stride + n);
    // SAFETY: the slices hold every element that the sizes and strides reach, as was just asserted; `out` is borrowed
    // exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            true,
            a.as_ptr(),
            1,
            a_stride as isize,
            b.as_ptr(),
            1,
            b_stride as isize,
            1.0,
            sign,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

impl Upper {
    /// The mean of the diagonal.
    pub fn mean_diagonal(&self) -> f64 {
        (0..self.n).map(|i| self.elems[i * self.n + i]).sum::<f64>() / self.n.max(1) as f64
    }

    /// Rows and columns in another order; the lower triangle is not filled.
    pub fn permuted(&self, order: &[u32]) -> Upper {
        let n = self.n;
        let mut elems = vec![0.0; n * n];
        elems.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            for j in i..n {
                let (a, b) = (order[i] as usize, order[j] as usize);
                row[j] = self.elems[a.min(b) * n + a.max(b)];
            }
        });
        Upper { n, elems }
    }

    /// Replaces `H` by `U` with `H^-1 = U^T U`; the index of a pivot that isn't positive if `H` isn't.
    pub fn into_inverse_factor(mut self) -> Result<Upper, usize> {
        self.factor()?;
        self.invert();
        Ok(self)
    }

    /// `H = R R^T`, from the last block to the first.
    fn factor(&mut self) -> Result<(), usize> {
        let n = self.n;
        let mut end = n;
        while end > 0 {
            let start = (end - 1) / BLOCK * BLOCK;
            let width = end - start;
            self.factor_block(start, end)?;
            // Above the block: X * R_block^T = H, from the last column to the first.
            let (above, block) = self.elems.split_at_mut(start * n);
            above.par_chunks_mut(n).for_each(|row| {
                for j in (start..end).rev() {
                    let known: f64 = (j + 1..end).map(|k| row[k] * block[(j - start) * n + k]).sum();
                    row[j] = (row[j] - known) / block[(j - start) * n + j];
                }
            });
            // What is left less X * X^T, of which a panel of rows takes the part right of its first column.
            let mut x_transposed = vec![0.0; width * start];
            for i in 0..start {
                for j in 0..width {
                    x_transposed[j * start + i] = above[i * n + start + j];
                }
            }
            above.par_chunks_mut(BLOCK * n).enumerate().for_each(|(panel, rows)| {
                let from = panel * BLOCK;
                let m = rows.len() / n;
                let x: Vec<f64> = rows.chunks_exact(n).flat_map(|row| row[start..end].to_vec()).collect();
                add_product(
                    [m, start - from, width],
                    (&mut rows[from..], n),
                    (&x, width),
                    (&x_transposed[from..], start),
                    -1.0,
                );
            });
            end = start;
        }
        Ok(())
    }

    fn factor_block(&mut self, start: usize, end: usize) -> Result<(), usize> {
        let n = self.n;
        for j in (start..end).rev() {
            for i in (start..=j).rev() {
                let known: f64 = (j + 1..end).map(|k| self.elems[i * n + k] * self.elems[j * n + k]).sum();
                let rest = self.elems[i * n + j] - known;
                if i < j {
                    self.elems[i * n + j] = rest / self.elems[j * n + j];
                } else if rest > 0.0 && rest.is_finite() {
                    self.elems[j * n + j] = rest.sqrt();
                } else {
                    return Err(j);
                }
            }
        }
        Ok(())
    }

    /// The inverse of an upper triangular matrix, block column after block column.
    fn invert(&mut self) {
        let n = self.n;
        for start in (0..n).step_by(BLOCK) {
            let end = (start + BLOCK).min(n);
            let width = end - start;
            self.invert_block(start, end);
            // Above the block: -(inverse so far) * R * (inverse of the block).
            let inverse: Vec<f64> = (start..end)
                .flat_map(|i| (start..end).map(move |j| (i, j)))
                .map(|(i, j)| if i <= j { self.elems[i * n + j] } else { 0.0 })
                .collect();
            let mut product = vec![0.0; start * width];
            let above = &self.elems[..start * n];
            product.par_chunks_mut(BLOCK * width).enumerate().for_each(|(panel, out)| {
                let m = out.len() / width;
                let rows = &above[panel * BLOCK * n + start..];
                add_product([m, width, width], (out, width), (rows, n), (&inverse, width), 1.0);
            });
            self.elems[..start * n].par_chunks_mut(BLOCK * n).enumerate().for_each(|(panel, rows)| {
                let from = panel * BLOCK;
                let m = rows.len() / n;
                let mut left = vec![0.0; m * (start - from)];
                for (i, left) in left.chunks_exact_mut(start - from).enumerate() {
                    left[i..].copy_from_slice(&rows[i * n + from + i..i * n + start]);
                }
                rows.chunks_exact_mut(n).for_each(|row| row[start..end].fill(0.0));
                add_product(
                    [m, width, start - from],
                    (&mut rows[start..], n),
                    (&left, start - from),
                    (&product[from * width..], width),
                    -1.0,
                );
            });
        }
    }

    fn invert_block(&mut self, start: usize, end: usize) {
        let n = self.n;
        for j in start..end {
            let pivot = 1.0 / self.elems[j * n + j];
            for i in start..j {
                // Row `i` of the inverse so far by column `j` of the matrix.
                let sum: f64 = (i..j).map(|k| self.elems[i * n + k] * self.elems[k * n + j]).sum();
                self.elems[i * n + j] = -sum * pivot;
            }
            self.elems[j * n + j] = pivot;
        }
    }
}

/// `a^T b` in f32, `[m, n]`, of row-major matrices of `tokens` rows so far apart, from the first column of each on.
///
/// # Panics
/// If a slice is too short.
fn cross(
    [m, n, tokens]: [usize; 3],
    (a, a_stride): (&[f32], usize),
    (b, b_stride): (&[f32], usize),
) -> Vec<f32> {
    let mut product = vec![0.0; m * n];
    assert!(tokens > 0 && a.len() >= (tokens - 1) * a_stride + m && b.len() >= (tokens - 1) * b_stride + n);
    // SAFETY: the operands were asserted to hold `tokens` rows of `m` and `n`, and `product` holds `m` rows of `n`.
    unsafe {
        gemm::gemm(
            m,
            n,
            tokens,
            product.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_stride as isize,
            1,
            b.as_ptr(),
            1,
            b_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    product
}

/// Adds `x^T x` of activations `[tokens, n]` to the upper triangle. Each panel of rows is a product in f32 over the tokens given.
pub(super) fn add_gram(hessian: &mut Upper, x: &[f32]) {
    let n = hessian.n;
    let tokens = x.len() / n.max(1);
    if tokens == 0 {
        return;
    }
    hessian.elems.par_chunks_mut(BLOCK * n).enumerate().for_each(|(panel, rows)| {
        let from = panel * BLOCK;
        let (m, cols) = (rows.len() / n, n - from);
        let product = cross([m, cols, tokens], (&x[from..], n), (&x[from..], n));
        for (row, product) in rows.chunks_exact_mut(n).zip(product.chunks_exact(cols)) {
            row[from..].iter_mut().zip(product).for_each(|(sum, &term)| *sum += f64::from(term));
        }
    });
}

/// Adds `a^T b` of `a` `[tokens, rows]` and `b` `[tokens, cols]` to `sums`, `[rows, cols]`. Products are in f32 over the tokens given.
pub(super) fn add_cross(sums: &mut [f64], a: &[f32], b: &[f32], tokens: usize) {
    if tokens == 0 || sums.is_empty() {
        return;
    }
    let (rows, cols) = (a.len() / tokens, b.len() / tokens);
    assert!(sums.len() == rows * cols && a.len() == tokens * rows && b.len() == tokens * cols);
    sums.par_chunks_mut(BLOCK * cols).enumerate().for_each(|(panel, sums)| {
        let (from, m) = (panel * BLOCK, sums.len() / cols);
        let product = cross([m, cols, tokens], (&a[from..], rows), (b, cols));
        sums.iter_mut().zip(product).for_each(|(sum, term)| *sum += f64::from(term));
    });
}

/// `out += a * b` of row-major `a` `[m, k]` and `b` `[k, n]`; `b` may be given transposed, `[n, k]`.
pub(super) fn add_matmul(out: &mut [f64], a: &[f64], b: &[f64], k: usize, transposed: bool) {
    if k == 0 || b.is_empty() {
        return;
    }
    let n = b.len() / k;
    assert!(b.len() == n * k && out.len() / n * k == a.len());
    let (column, row) = if transposed { (k as isize, 1) } else { (1, n as isize) };
    out.par_chunks_mut(BLOCK * n).zip(a.par_chunks(BLOCK * k)).for_each(|(out, a)| {
        // SAFETY: `out` holds `out.len() / n` rows of `n`, `a` as many of `k`, and `b` all of its `n * k` elements by either
        // pair of strides. The sizes were asserted.
        unsafe {
            gemm::gemm(
                out.len() / n,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                true,
                a.as_ptr(),
                1,
                k as isize,
                b.as_ptr(),
                column,
                row,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantise::tests::numbers;

    fn gram(n: usize, tokens: usize) -> (Upper, Vec<f32>) {
        let x = numbers(7, n * tokens);
        let mut hessian = Upper { n, elems: vec![0.0; n * n] };
        add_gram(&mut hessian, &x);
        (hessian, x)
    }

    #[test]
    fn grams_are_sums_of_products() {
        let (hessian, x) = gram(70, 31);
        for (i, j) in [(0, 0), (3, 69), (63, 64), (64, 64), (69, 69)] {
            let sum: f64 = x.chunks_exact(70).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
            assert!((hessian.elems[i * 70 + j] - sum).abs() < 1e-5, "{i} {j}");
        }
    }

    #[test]
    fn the_factor_inverts_the_hessian() {
        for n in [1, 2, 63, 64, 65, 130, 200] {
            let (mut hessian, _) = gram(n, 2 * n + 5);
            for i in 0..n {
                hessian.elems[i * n + i] += 0.1;
            }
            let full = |i: usize, j: usize| hessian.elems[i.min(j) * n + i.max(j)];
            let original: Vec<f64> = (0..n * n).map(|at| full(at / n, at % n)).collect();
            let u = Upper { n, elems: hessian.elems.clone() }.into_inverse_factor().expect("positive");
            // U^T U H is the identity.
            let upper = |i: usize, j: usize| if i <= j { u.elems[i * n + j] } else { 0.0 };
            let mut worst = 0.0_f64;
            for i in 0..n {
                let row: Vec<f64> =
                    (0..n).map(|j| (0..=i.min(j)).map(|k| upper(k, i) * upper(k, j)).sum()).collect();
                for j in 0..n {
                    let sum: f64 = (0..n).map(|k| row[k] * original[k * n + j]).sum();
                    worst = worst.max((sum - f64::from(u8::from(i == j))).abs());
                }
            }
            assert!(worst < 1e-8, "{n}: {worst}");
        }
    }

    #[test]
    fn an_indefinite_matrix_is_refused() {
        let elems = vec![1.0, 2.0, 0.0, 1.0];
        assert!(Upper { n: 2, elems }.into_inverse_factor().is_err());
        assert!(Upper { n: 1, elems: vec![f64::NAN] }.into_inverse_factor().is_err());
    }

    #[test]
    fn permuting_moves_rows_and_columns() {
        let upper = Upper { n: 3, elems: vec![1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 0.0, 0.0, 6.0] };
        let moved = upper.permuted(&[2, 0, 1]);
        assert_eq!(moved.elems, [6.0, 3.0, 5.0, 0.0, 1.0, 2.0, 0.0, 0.0, 4.0]);
        assert_eq!(moved.mean_diagonal(), 11.0 / 3.0);
    }
}
