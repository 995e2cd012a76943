use burn::tensor::Tensor;

use crate::Slots;

/// A module that computes in blocks, each from one hidden state to the next: what can be calibrated block by block, with
/// no more than one block's statistics in memory.
pub trait Blocks: Slots {
    /// What one forward takes, as a batch of tokens.
    type Batch;

    /// Number of blocks.
    fn n_blocks(&self) -> usize;

    /// The path of a block: its slots' paths begin with it.
    fn block_path(&self, block: usize) -> String;

    /// The hidden state before the first block, `[B, T, d_model]`.
    fn enter(&self, batch: &Self::Batch) -> Tensor<3>;

    /// One block.
    ///
    /// # Shapes
    /// - `state`: `[B, T, d_model]`; the same out
    fn forward_block(&self, block: usize, state: Tensor<3>) -> Tensor<3>;
}
