//! The inner loop of f32 products, in AVX-512.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use crate::gemm::{LINE, Line, ROWS};
use crate::x86::Avx512;

/// Proves that the processor has AVX-512 F.
#[derive(Clone, Copy)]
pub(crate) struct Tiles(#[allow(dead_code, reason = "the proof itself")] &'static Avx512);

impl Tiles {
    pub(crate) fn get() -> Option<Self> {
        Avx512::get().map(Self)
    }

    /// `out = Σ a·b` over the steps of `b`, or `out += Σ a·b`: eight rows times `LINES` lines of columns. The steps of a row of
    /// `a` are `stride` numbers apart. Each sum is one chain of fused multiplications and additions, in the order of the steps.
    ///
    /// # Safety
    /// `out` must hold numbers where they are added to.
    pub(crate) unsafe fn tile<const LINES: usize>(
        self,
        a: [&[f32]; ROWS],
        stride: usize,
        b: &[[Line; LINES]],
        add: bool,
        out: [&mut [[MaybeUninit<f32>; LINE]; LINES]; ROWS],
    ) {
        let last = b.len().saturating_sub(1) * stride;
        assert!(a.iter().all(|row| row.len() > last), "a row ends before the steps do");
        // SAFETY: `self` proves AVX-512 F; the rows reach as far as the steps; the caller vouches for `out`.
        unsafe { tile(a.map(<[f32]>::as_ptr), stride, b, add, out) }
    }
}

/// # Safety
/// Each row of `a` must hold `stride` times the steps of `b`, the last stride but its first number aside; `out` must hold
/// numbers where they are added to.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const LINES: usize>(
    a: [*const f32; ROWS],
    stride: usize,
    b: &[[Line; LINES]],
    add: bool,
    out: [&mut [[MaybeUninit<f32>; LINE]; LINES]; ROWS],
) {
    let mut sums = [[_mm512_setzero_ps(); LINES]; ROWS];
    for (step, b) in b.iter().enumerate() {
        let mut columns = [_mm512_setzero_ps(); LINES];
        for (column, line) in columns.iter_mut().zip(b) {
            // SAFETY: a line has 16 numbers.
            *column = unsafe { _mm512_loadu_ps(line.0.as_ptr()) };
        }
        for (sums, row) in sums.iter_mut().zip(a) {
            // SAFETY: the caller's promise.
            let a = _mm512_set1_ps(unsafe { *row.add(step * stride) });
            for (sum, &column) in sums.iter_mut().zip(&columns) {
                *sum = _mm512_fmadd_ps(a, column, *sum);
            }
        }
    }
    for (out, sums) in out.into_iter().zip(sums) {
        for (out, sum) in out.iter_mut().zip(sums) {
            let before = match add {
                // SAFETY: a line has 16 numbers, and they are there.
                true => unsafe { _mm512_loadu_ps(out.as_ptr().cast()) },
                false => _mm512_setzero_ps(),
            };
            // SAFETY: a line has 16 numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), _mm512_add_ps(before, sum)) };
        }
    }
}
