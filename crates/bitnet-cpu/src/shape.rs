//! The shape of a weight and the part of it that shares one scale.

use bitnet_format::Granularity;

use crate::CpuError;
use crate::packed::{BLOCK_INPUTS, TILE_ROWS};

/// The largest `d_input`: up to here every integer accumulator is at most 2²⁴ in size, so that its conversion
/// to f32 is exact, and no kernel's intermediate sum overflows.
pub const MAX_D_INPUT: usize = 1 << 17;

/// A checked weight shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) d_output: usize,
    pub(crate) d_input: usize,
    pub(crate) granularity: Granularity,
}

impl Shape {
    pub(crate) fn new(d_output: usize, d_input: usize, granularity: Granularity) -> Result<Self, CpuError> {
        if d_output == 0 || d_input == 0 || d_input > MAX_D_INPUT {
            return Err(CpuError::Shape { d_output, d_input });
        }
        match granularity {
            Granularity::Group(group) if !group.is_power_of_two() || !d_input.is_multiple_of(group) => {
                Err(CpuError::Group { group, d_input })
            }
            _ => Ok(Self { d_output, d_input, granularity }),
        }
    }

    /// Elements of the weight; saturates, so that an absurd shape fails the length check instead of wrapping.
    pub(crate) fn len(&self) -> usize {
        self.d_output.saturating_mul(self.d_input)
    }

    /// Consecutive inputs whose integer sum is scaled as one: the group, or else the row.
    pub(crate) fn segment(&self) -> usize {
        match self.granularity {
            Granularity::Group(group) => group,
            Granularity::Tensor | Granularity::Row => self.d_input,
        }
    }

    /// Segments of one row.
    pub(crate) fn segments(&self) -> usize {
        self.d_input / self.segment()
    }

    /// Scales that the weight has.
    pub(crate) fn scales(&self) -> usize {
        match self.granularity {
            Granularity::Tensor => 1,
            Granularity::Row => self.d_output,
            Granularity::Group(_) => self.d_output * self.segments(),
        }
    }

    /// Where the scale of a row's segment is.
    pub(crate) fn scale_at(&self, row: usize, segment: usize) -> usize {
        match self.granularity {
            Granularity::Tensor => 0,
            Granularity::Row => row,
            Granularity::Group(_) => row * self.segments() + segment,
        }
    }

    /// Blocks of one tile.
    pub(crate) fn blocks(&self) -> usize {
        self.segments() * self.segment().div_ceil(BLOCK_INPUTS)
    }

    /// Words of the packed weight.
    pub(crate) fn words(&self) -> usize {
        self.d_output.div_ceil(TILE_ROWS).saturating_mul(self.blocks() * TILE_ROWS)
    }

    /// Scales in the order of the tiles, padding included.
    pub(crate) fn tiled_scales(&self) -> usize {
        match self.granularity {
            Granularity::Tensor => 1,
            _ => self.d_output.next_multiple_of(TILE_ROWS) * self.segments(),
        }
    }

    /// Where a row's or group's scale stands in the order of the tiles.
    pub(crate) fn tiled_scale(&self, i: usize) -> usize {
        let (row, segment) = (i / self.segments(), i % self.segments());
        (row / TILE_ROWS * self.segments() + segment) * TILE_ROWS + row % TILE_ROWS
    }
}
