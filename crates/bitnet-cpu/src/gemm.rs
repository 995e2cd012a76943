//! Products of f32 matrices, of which one may be codes.

#![allow(unsafe_code, reason = "results are written to memory that nobody has zeroed")]

use std::array::from_fn;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::columns::split_columns;
use crate::error::check_length;
use crate::kernel::vectorized;
use crate::packed::{BLOCK_INPUTS, TILE_ROWS};
#[cfg(target_arch = "x86_64")]
use crate::split;
#[cfg(target_arch = "x86_64")]
use crate::x86::{Amx, Tiles};
use crate::{CpuError, Kernel, PackedTernary};

/// Rows of a tile of the result.
pub(crate) const ROWS: usize = 8;
/// Numbers of a line, the columns of a tile's unit.
pub(crate) const LINE: usize = 16;
/// Lines of a tile: 24 sums, 3 lines and a factor are held in the 32 registers.
const LINES: usize = 3;
/// Terms that are summed before the result is touched: a panel of so many steps stays in the first cache.
const STEPS: usize = 192;
/// Rows and columns of a block of AMX's, two tiles each way, and the steps of a tile. A product with fewer rows or steps is not
/// worth it.
pub(crate) const SIDE: usize = 32;
/// Rows and columns of what a task packs at a time, for the second cache.
const BLOCK: [usize; 2] = [256, 576];

/// Sixteen numbers of a row, in a line of the cache.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct Line(pub(crate) [f32; LINE]);

/// An f32 matrix where it lies: rows, or the columns of its transpose, at a distance from each other.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
    pub(crate) transposed: bool,
}

impl<'a> Matrix<'a> {
    /// A matrix whose rows start `stride` numbers apart.
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride, transposed: false }
    }

    /// The transpose of one whose rows start `stride` numbers apart.
    pub fn columns(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride, transposed: true }
    }

    /// Steps of a row, or zeros for a row that is missing.
    #[inline]
    fn row(&self, row: usize, present: bool, steps: &Range<usize>) -> &'a [f32] {
        const ZEROS: &[f32] = &[0.0; STEPS];
        match present {
            true => &self.values[row * self.stride + steps.start..][..steps.len()],
            false => &ZEROS[..steps.len()],
        }
    }

    /// The numbers from the first to the last of a matrix of this shape.
    fn length(&self, rows: usize, columns: usize) -> usize {
        let (lines, line) = if self.transposed { (columns, rows) } else { (rows, columns) };
        if rows == 0 || columns == 0 {
            0
        } else {
            (lines - 1).saturating_mul(self.stride).saturating_add(line)
        }
    }
}

/// The right factor of a product, `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// In f32.
    Floats(Matrix<'a>),
    /// int8 codes, and a scale per row: `codes · scale`.
    Codes {
        /// `[k, n]`
        codes: &'a [i8],
        /// `[k]`
        scales: &'a [f32],
    },
    /// A packed weight, `[d_output, d_input]`: `codes · scale`.
    Ternary(&'a PackedTernary<'a>),
}

/// f32 products for processors with AVX-512: `Σ a·b`, in ascending order within runs of at most 192 terms, with one
/// rounding for multiplication and addition together; the runs' sums are then added in ascending order. So the bits depend
/// on neither threads nor position.
///
/// With AMX, products with codes are those of three bf16 that add up to the f32, each exact but for subnormal parts, which count
/// as zero; the sums are in another order, which depends on neither too.
#[derive(Clone, Copy)]
pub struct Gemm {
    tiles: Tiles,
    amx: Option<Amx>,
}

/// No other processor has these products.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
enum Tiles {}

#[cfg(not(target_arch = "x86_64"))]
impl Tiles {
    fn get() -> Option<Self> {
        None
    }

    unsafe fn tile<const N: usize>(
        self,
        _: [&[f32]; ROWS],
        _: usize,
        _: &[[Line; N]],
        _: bool,
        _: [&mut [[MaybeUninit<f32>; LINE]; N]; ROWS],
    ) {
        match self {}
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
enum Amx {}

#[cfg(not(target_arch = "x86_64"))]
impl Amx {
    fn get() -> Option<Self> {
        None
    }
}

impl Gemm {
    /// The products, if this processor has AVX-512.
    pub fn new() -> Option<Self> {
        Some(Self { tiles: Tiles::get()?, amx: Amx::get() })
    }

    /// `a · b`.
    ///
    /// # Shapes
    /// - `a`: `[m, k]`, `b`: `[k, n]`
    /// - returns `[m, n]`, row-major
    ///
    /// # Errors
    /// [`CpuError::Length`] if a slice does not have its shape, or if there is no memory for the result;
    /// [`CpuError::Factor`] if a packed weight does not have its shape.
    pub fn product(self, a: Matrix<'_>, b: Right<'_>, [m, k, n]: [usize; 3]) -> Result<Vec<f32>, CpuError> {
        check_length("a", a.values.len().min(a.length(m, k)), a.length(m, k))?;
        match b {
            Right::Floats(b) => check_length("b", b.values.len().min(b.length(k, n)), b.length(k, n))?,
            Right::Codes { codes, scales } => {
                check_length("b", codes.len(), k.saturating_mul(n))?;
                check_length("scales", scales.len(), k)?;
            }
            Right::Ternary(b) => {
                let (found, expected) = ([b.d_output(), b.d_input()], [k, n]);
                if found != expected {
                    return Err(CpuError::Factor { found, expected });
                }
            }
        }
        if m == 0 || n == 0 {
            return Ok(Vec::new());
        }
        // Saturating, so that an absurd shape fails here instead of wrapping.
        let (mut out, len) = (Vec::new(), m.saturating_mul(n));
        if out.try_reserve_exact(len).is_err() {
            return Err(CpuError::Length { name: "out", found: 0, expected: len });
        }
        let unpacked = match b {
            // Blocks that do not lie beneath each other cannot be read in lines.
            Right::Ternary(b) if !b.shape.segment().is_multiple_of(BLOCK_INPUTS) => b.dequantize(),
            _ => Vec::new(),
        };
        let b = if unpacked.is_empty() { b } else { Right::Floats(Matrix::rows(&unpacked, n)) };
        let split = self.amx.zip(scales(&b)).filter(|_| m >= SIDE && k >= SIDE);
        let unit = if split.is_some() { [SIDE; 2] } else { [ROWS, LINES * LINE] };
        let [rows, columns] = task_size([m, n], unit, len.saturating_mul(k));
        out.spare_capacity_mut()[..len].par_chunks_mut(rows * n).enumerate().for_each(|(i, out)| {
            split_columns(out, n, columns).into_par_iter().enumerate().for_each(|(j, mut out)| {
                let at = [i * rows, j * columns];
                match split {
                    #[cfg(target_arch = "x86_64")]
                    Some((amx, scales)) => {
                        // SAFETY: the block starts no task, so that no other is begun before it ends.
                        let tiles = unsafe { amx.tiles() };
                        split::block(&tiles, a, (b, scales), at, k, &mut out);
                    }
                    // SAFETY: nothing is added.
                    _ => unsafe { self.write(a, b, at, k, false, &mut out) },
                }
            });
        });
        // SAFETY: the tasks' parts are all of it, and each has written its own.
        unsafe { out.set_len(len) };
        Ok(out)
    }

    /// A part of a product, on this thread: the rows of `a` from `row` on times the columns of `b` from `column` on, into
    /// equally long rows, or added to them.
    pub(crate) fn block(
        self,
        a: Matrix<'_>,
        b: Right<'_>,
        at: [usize; 2],
        k: usize,
        add: bool,
        out: &mut [&mut [f32]],
    ) {
        let out = &raw mut *out as *mut [&mut [MaybeUninit<f32>]];
        // SAFETY: both slices are laid out alike, and what is written are numbers, as those that are there.
        unsafe { self.write(a, b, at, k, add, &mut *out) }
    }

    /// The same into memory that need not hold numbers.
    ///
    /// # Safety
    /// It must where they are added to.
    unsafe fn write(
        self,
        a: Matrix<'_>,
        b: Right<'_>,
        [row, column]: [usize; 2],
        k: usize,
        add: bool,
        out: &mut [&mut [MaybeUninit<f32>]],
    ) {
        thread_local! {
            static PACKED: RefCell<(Vec<[f32; ROWS]>, Vec<Line>)> = const { RefCell::new((Vec::new(), Vec::new())) };
        }
        let Some(columns) = out.first().map(|out| out.len()) else {
            return;
        };
        if k == 0 && !add {
            out.iter_mut().for_each(|out| out.fill(MaybeUninit::new(0.0)));
        }
        let kernel = Kernel::new();
        let runs = k.div_ceil(STEPS).max(1);
        let steps = k.div_ceil(runs).max(1);
        PACKED.with_borrow_mut(|(a_packed, b_packed)| {
            for first in (0..k).step_by(steps) {
                let steps = first..k.min(first + steps);
                let panels = out.len().div_ceil(ROWS);
                if a.transposed {
                    a_packed.resize((panels * steps.len()).max(a_packed.len()), [0.0; ROWS]);
                    for (panel, packed) in a_packed.chunks_mut(steps.len()).take(panels).enumerate() {
                        let at = row + panel * ROWS;
                        pack_rows(
                            kernel,
                            a,
                            at..at.saturating_add(ROWS).min(row + out.len()),
                            steps.clone(),
                            packed,
                        );
                    }
                }
                let lines = columns.div_ceil(LINE) * steps.len();
                b_packed.resize(lines.max(b_packed.len()), Line::default());
                for (at, packed) in panels_of(columns, steps.len(), b_packed) {
                    pack_columns(kernel, b, steps.clone(), column + at.start..column + at.end, packed);
                }
                let add = add || first > 0;
                for (at, b) in panels_of(columns, steps.len(), b_packed) {
                    for (panel, out) in out.chunks_mut(ROWS).enumerate() {
                        let first = row + panel * ROWS;
                        let (a, stride) = match a.transposed {
                            true => {
                                let panel = a_packed[panel * steps.len()..][..steps.len()].as_flattened();
                                (from_fn(|i| &panel[i..]), ROWS)
                            }
                            false => (from_fn(|i| a.row(first + i, i < out.len(), &steps)), 1),
                        };
                        // SAFETY: what is added to is the caller's, or the run's before.
                        unsafe {
                            match b.len() / steps.len() {
                                1 => self.tile::<1>(a, stride, b, add, at.clone(), out),
                                2 => self.tile::<2>(a, stride, b, add, at.clone(), out),
                                _ => self.tile::<LINES>(a, stride, b, add, at.clone(), out),
                            }
                        }
                    }
                }
            }
        });
    }

    /// One tile, whole or at the edge, where it is computed beside the result.
    ///
    /// # Safety
    /// The result must hold numbers where they are added to.
    #[inline]
    unsafe fn tile<const N: usize>(
        self,
        a: [&[f32]; ROWS],
        stride: usize,
        b: &[Line],
        add: bool,
        at: Range<usize>,
        out: &mut [&mut [MaybeUninit<f32>]],
    ) {
        let b = b.as_chunks::<N>().0;
        if let Ok(out) = <&mut [&mut [MaybeUninit<f32>]; ROWS]>::try_from(&mut *out)
            && at.len() == N * LINE
        {
            let lines = out
                .each_mut()
                .map(|out| &mut out[at.clone()].as_chunks_mut::<LINE>().0.as_chunks_mut::<N>().0[0]);
            // SAFETY: the caller's promise.
            return unsafe { self.tiles.tile(a, stride, b, add, lines) };
        }
        let mut whole = [[[MaybeUninit::new(0.0_f32); LINE]; N]; ROWS];
        // SAFETY: nothing is added; and numbers are there from the beginning.
        let whole = unsafe {
            self.tiles.tile(a, stride, b, false, whole.each_mut());
            whole.map(|row| row.map(|line| line.map(|sum| sum.assume_init())))
        };
        for (out, sums) in out.iter_mut().zip(&whole) {
            for (out, sum) in out[at.clone()].iter_mut().zip(sums.as_flattened()) {
                // SAFETY: the caller's promise.
                let before = if add { unsafe { out.assume_init() } } else { 0.0 };
                out.write(before + sum);
            }
        }
    }
}

/// The scale of each step of a right factor whose rows have one each, or that of all; none where columns have their own, and
/// where there are no codes.
fn scales<'a>(b: &Right<'a>) -> Option<&'a [f32]> {
    match *b {
        Right::Codes { scales, .. } => Some(scales),
        Right::Ternary(b) if b.shape.segments() == 1 => Some(b.scales()),
        _ => None,
    }
}

/// Rows and columns of a task, multiples of the units: what fits the caches, and less of it where threads would stand idle.
fn task_size([m, n]: [usize; 2], unit: [usize; 2], work: usize) -> [usize; 2] {
    /// Multiplications below which a second task costs more than it saves.
    const MIN_WORK: usize = 1 << 19;
    let mut parts = [m.div_ceil(BLOCK[0]), n.div_ceil(BLOCK[1])];
    let size = |parts: [usize; 2]| {
        [m.div_ceil(parts[0]).next_multiple_of(unit[0]), n.div_ceil(parts[1]).next_multiple_of(unit[1])]
    };
    let wanted = (2 * rayon::current_num_threads()).min(work / MIN_WORK);
    while parts[0] * parts[1] < wanted {
        let [rows, columns] = size(parts);
        match (rows > unit[0], columns > unit[1]) {
            (_, true) if columns >= rows => parts[1] += 1,
            (true, _) => parts[0] += 1,
            (false, true) => parts[1] += 1,
            (false, false) => break,
        }
    }
    size(parts)
}

/// The runs of columns that become panels of up to three lines, with their part of the packed lines.
fn panels_of(
    columns: usize,
    steps: usize,
    packed: &mut [Line],
) -> impl Iterator<Item = (Range<usize>, &mut [Line])> {
    let lines = columns.div_ceil(LINE) * steps;
    packed[..lines].chunks_mut(LINES * steps).enumerate().map(move |(panel, packed)| {
        let first = panel * LINES * LINE;
        (first..columns.min(first + LINES * LINE), packed)
    })
}

vectorized! {
    /// Rows of a transposed `a` side by side, step by step; those that are missing are zero.
    fn pack_rows(a: Matrix<'_>, rows: Range<usize>, steps: Range<usize>, packed: &mut [[f32; ROWS]]) {
        for (step, packed) in steps.zip(packed) {
            let values = &a.values[step * a.stride + rows.start..][..rows.len()];
            if let Ok(values) = <&[f32; ROWS]>::try_from(values) {
                *packed = *values;
            } else {
                *packed = [0.0; ROWS];
                packed[..rows.len()].copy_from_slice(values);
            }
        }
    }
}

vectorized! {
    /// Lines of `b`, step by step; columns that are missing are zero.
    fn pack_columns(b: Right<'_>, steps: Range<usize>, columns: Range<usize>, packed: &mut [Line]) {
        let lines = packed.len() / steps.len();
        match b {
            Right::Floats(Matrix { values, stride, transposed: false }) => {
                for (step, packed) in steps.zip(packed.chunks_exact_mut(lines)) {
                    let values = &values[step * stride + columns.start..][..columns.len()];
                    for (line, values) in packed.iter_mut().zip(values.chunks(LINE)) {
                        line.0 = padded(values);
                    }
                }
            }
            Right::Floats(Matrix { values, stride, transposed: true }) => {
                if columns.len() < lines * LINE {
                    packed.fill(Line::default());
                }
                for (at, column) in columns.enumerate() {
                    let values = &values[column * stride + steps.start..][..steps.len()];
                    for (packed, &value) in packed.chunks_exact_mut(lines).zip(values) {
                        packed[at / LINE].0[at % LINE] = value;
                    }
                }
            }
            Right::Codes { codes, scales } => {
                let n = codes.len() / scales.len();
                for (step, packed) in steps.zip(packed.chunks_exact_mut(lines)) {
                    let (codes, scale) = (&codes[step * n + columns.start..][..columns.len()], scales[step]);
                    for (line, codes) in packed.iter_mut().zip(codes.chunks(LINE)) {
                        for (value, code) in line.0.iter_mut().zip(padded::<_, LINE>(codes)) {
                            *value = f32::from(code) * scale;
                        }
                    }
                }
            }
            Right::Ternary(b) => {
                let (blocks, per_segment) = (b.shape.blocks(), b.shape.segment() / BLOCK_INPUTS);
                for (step, packed) in steps.zip(packed.chunks_exact_mut(lines)) {
                    let (tile, row) = (step / TILE_ROWS, step % TILE_ROWS);
                    for (line, block) in packed.iter_mut().zip(columns.start / BLOCK_INPUTS..) {
                        let scale = match b.scales() {
                            [scale] => *scale,
                            tiled => tiled[(tile * b.shape.segments() + block / per_segment) * TILE_ROWS + row],
                        };
                        let word = b.words()[(tile * blocks + block) * TILE_ROWS + row];
                        for (i, value) in line.0.iter_mut().enumerate() {
                            *value = code_of(word, i) * scale;
                        }
                    }
                }
            }
        }
    }
}

/// One of the sixteen codes of a packed word.
#[inline(always)]
pub(crate) fn code_of(word: i32, input: usize) -> f32 {
    ((word >> (8 * (input % 4) + 2 * (input / 4)) & 3) - 1) as f32
}

/// Up to `N` values; what is missing is zero.
#[inline(always)]
pub(crate) fn padded<T: Copy + Default, const N: usize>(values: &[T]) -> [T; N] {
    if let Ok(values) = <&[T; N]>::try_from(values) {
        return *values;
    }
    let mut padded = [T::default(); N];
    padded[..values.len()].copy_from_slice(values);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Granularity;

    /// Small integers, whose sums are exact.
    fn integers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7 + seed * 5 + i / 11) % 9) as f32 - 4.0).collect()
    }

    fn expected(
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
        [m, k, n]: [usize; 3],
    ) -> Vec<f32> {
        (0..m * n).map(|at| (0..k).map(|i| a(at / n, i) * b(i, at % n)).sum()).collect()
    }

    /// With AMX and without, where the processor has them.
    fn variants() -> Vec<Gemm> {
        let Some(gemm) = Gemm::new() else {
            eprintln!("skipped: no AVX-512");
            return Vec::new();
        };
        if gemm.amx.is_none() {
            eprintln!("skipped in part: no AMX");
            return vec![gemm];
        }
        vec![gemm, Gemm { amx: None, ..gemm }]
    }

    #[test]
    fn every_layout_gives_the_product() {
        for (gemm, shape) in
            [[1, 1, 1], [8, 16, 48], [9, 193, 50], [300, 400, 70], [7, 33, 600], [3, 0, 5], [260, 20, 1200]]
                .into_iter()
                .flat_map(|shape| variants().into_iter().map(move |gemm| (gemm, shape)))
        {
            let [m, k, n] = shape;
            let (a, b) = (integers(m * k, 1), integers(k * n, 2));
            let transposed = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..x.len()).map(|at| x[at % rows * columns + at / rows]).collect()
            };
            let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k, n));
            let right = expected(|i, j| a[i * k + j], |i, j| b[i * n + j], shape);
            for a in [Matrix::rows(&a, k), Matrix::columns(&a_t, m)] {
                for b in [Matrix::rows(&b, n), Matrix::columns(&b_t, k)] {
                    assert_eq!(gemm.product(a, Right::Floats(b), shape).unwrap(), right, "{shape:?}");
                }
            }
            let codes: Vec<i8> = b.iter().map(|&b| b as i8).collect();
            let scales: Vec<f32> = (0..k).map(|i| 0.5 * (1 + i % 3) as f32).collect();
            let right = expected(|i, j| a[i * k + j], |i, j| b[i * n + j] * scales[i], shape);
            for a in [Matrix::rows(&a, k), Matrix::columns(&a_t, m)] {
                let b = Right::Codes { codes: &codes, scales: &scales };
                assert_eq!(gemm.product(a, b, shape).unwrap(), right, "codes, {shape:?}");
            }
        }
    }

    #[test]
    fn packed_weights_are_unpacked_on_the_way() {
        for (m, k, n, granularity) in [
            (11, 40, 80, Granularity::Tensor),
            (11, 65, 50, Granularity::Row),
            (40, 70, 192, Granularity::Group(32)),
            (11, 10, 24, Granularity::Group(8)),
            (32, 32, 16, Granularity::Tensor),
            (70, 200, 640, Granularity::Tensor),
            (45, 165, 96, Granularity::Row),
        ] {
            let a = integers(m * k, 3);
            let codes: Vec<i8> = integers(k * n, 4).iter().map(|&x| (x as i8).signum()).collect();
            let scales = match granularity {
                Granularity::Tensor => 1,
                Granularity::Row => k,
                Granularity::Group(group) => k * n / group,
            };
            let scales: Vec<f32> = (0..scales).map(|i| 0.25 * (1 + i % 5) as f32).collect();
            let weight = PackedTernary::pack(&codes, &scales, k, n, granularity).unwrap();
            let values = weight.dequantize();
            let expected = expected(|i, j| a[i * k + j], |i, j| values[i * n + j], [m, k, n]);
            for gemm in variants() {
                let found = gemm.product(Matrix::rows(&a, k), Right::Ternary(&weight), [m, k, n]).unwrap();
                assert_eq!(found, expected, "{granularity:?}");
            }
        }
    }

    /// Of numbers with all 24 bits and every size, and scales that are no powers of two: as exact as sums of f32 are.
    #[test]
    fn codes_are_multiplied_in_full_precision() {
        let [m, k, n] = [50, 300, 70];
        let a: Vec<f32> =
            (0..m * k).map(|i| (i as f32 * 0.7).sin() * 2f32.powi(i as i32 % 60 - 30)).collect();
        let codes: Vec<i8> = (0..k * n).map(|i| (i * 37 % 255) as u8 as i8).collect();
        let scales: Vec<f32> = (0..k).map(|i| 0.01 + i as f32 * 0.003).collect();
        for gemm in variants() {
            let b = Right::Codes { codes: &codes, scales: &scales };
            let out = gemm.product(Matrix::rows(&a, k), b, [m, k, n]).unwrap();
            for (at, out) in out.into_iter().enumerate() {
                let terms = (0..k).map(|i| {
                    f64::from(a[at / n * k + i]) * f64::from(codes[i * n + at % n]) * f64::from(scales[i])
                });
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                assert!((f64::from(out) - sum).abs() < 3e-7 * size, "{at}: {out}, expected {sum} of {size}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        for x in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut a = integers(40 * 50, 5);
            a[7 * 50 + 20] = x;
            for gemm in variants() {
                let b = Right::Codes { codes: &[1; 50 * 16], scales: &[1.0; 50] };
                let out = gemm.product(Matrix::rows(&a, 50), b, [40, 50, 16]).unwrap();
                let finite: Vec<bool> = out.chunks(16).map(|row| row.iter().all(|y| y.is_finite())).collect();
                assert!(
                    !finite[7] && finite.iter().filter(|&&finite| finite).count() == 39,
                    "{x}: {finite:?}"
                );
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let Some(gemm) = Gemm::new() else {
            return;
        };
        let shape @ [m, k, n] = [300, 500, 700];
        let float = |n: usize| -> Vec<f32> {
            integers(n, 7).iter().enumerate().map(|(i, x)| x * (i as f32).sin()).collect()
        };
        let (a, b) = (float(m * k), float(k * n));
        let (codes, scales): (Vec<i8>, _) = (b.iter().map(|x| (x * 30.0) as i8).collect(), vec![0.3; k]);
        for b in [Right::Floats(Matrix::rows(&b, n)), Right::Codes { codes: &codes, scales: &scales }] {
            let product = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| gemm.product(Matrix::rows(&a, k), b, shape)).unwrap()
            };
            assert_eq!(product(1), product(5));
        }
    }

    #[test]
    fn wrong_lengths_are_named() {
        let Some(gemm) = Gemm::new() else {
            return;
        };
        let (a, b) = (Matrix::rows(&[1.0; 5], 3), Right::Floats(Matrix::rows(&[1.0; 6], 2)));
        let error = gemm.product(a, b, [2, 3, 2]).unwrap_err();
        assert_eq!(error, CpuError::Length { name: "a", found: 5, expected: 6 });
        let huge = [usize::MAX, 0, 2];
        let nothing = (Matrix::rows(&[], 0), Right::Floats(Matrix::rows(&[], 2)));
        let error = gemm.product(nothing.0, nothing.1, huge).unwrap_err();
        assert_eq!(error, CpuError::Length { name: "out", found: 0, expected: usize::MAX });
        let weight = PackedTernary::pack(&[1; 12], &[1.0], 4, 3, Granularity::Tensor).unwrap();
        let a = Matrix::rows(&[1.0; 6], 6);
        let error = gemm.product(a, Right::Ternary(&weight), [1, 6, 2]).unwrap_err();
        assert_eq!(error, CpuError::Factor { found: [4, 3], expected: [6, 2] });
    }
}
