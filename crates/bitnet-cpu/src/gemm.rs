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
mod tests;
