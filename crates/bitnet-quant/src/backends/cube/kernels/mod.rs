//! Code that runs on the device. Apart from the rest, because the names of CubeCL's prelude are those of Burn's.
//!
//! Every kernel reads and writes contiguous tensors. A cube is a group of units that share memory.

pub(super) mod packed;
pub(super) mod tokens;
pub(super) mod weight;

use burn_cubecl::cubecl;
use cubecl::prelude::*;

use crate::packed::TILE_ROWS;

/// Units of a cube, where the kernel does not ask for another number.
pub(super) const UNITS: usize = 256;

/// The bits of [`crate::EPS`]. Those of floats without a sign are ordered as the floats are, an infinity and then NaN
/// on top, so the larger of two magnitudes is found among integers, which no device treats in a way of its own.
const EPS_BITS: u32 = crate::EPS.to_bits();
/// All bits but the sign.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// `round(x · factor)` within `low..=high`, halves to the even integer; `low` for NaN.
#[cube]
fn code(x: f32, factor: f32, low: f32, high: f32) -> f32 {
    let value = f32::round(x * factor);
    let mut code = low;
    if value > low {
        code = value;
    }
    if code > high {
        code = high;
    }
    code
}

/// Where the scale of a row's segment is: `[1]` per tensor, otherwise `[tiles, segments, 32]`.
#[cube]
fn scale_at(row: usize, segment: usize, segments: usize, #[comptime] per_tensor: bool) -> usize {
    if per_tensor {
        0usize.runtime()
    } else {
        (row / TILE_ROWS * segments + segment) * TILE_ROWS + row % TILE_ROWS
    }
}
