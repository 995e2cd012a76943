//! The smallest model that can be calibrated.

use bitnet_arch::layers::{Blocks, Projection, slots};
use burn::module::Module;
use burn::tensor::Tensor;

/// A model of one slot in one block, which takes the slot's inputs.
#[derive(Module, Debug)]
pub(crate) struct OneSlot {
    blocks: Vec<Block>,
}
slots!(OneSlot { blocks });

#[derive(Module, Debug)]
struct Block {
    slot: Projection,
}
slots!(Block { slot });

impl OneSlot {
    pub(crate) fn new(slot: &Projection) -> Self {
        Self { blocks: vec![Block { slot: slot.clone() }] }
    }

    pub(crate) fn slot(&self) -> &Projection {
        &self.blocks[0].slot
    }
}

impl Blocks for OneSlot {
    type Batch = Tensor<3>;

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block_path(&self, block: usize) -> String {
        format!("blocks.{block}")
    }

    fn enter(&self, batch: &Tensor<3>) -> Tensor<3> {
        batch.clone()
    }

    fn forward_block(&self, block: usize, state: Tensor<3>) -> Tensor<3> {
        self.blocks[block].slot.forward(state)
    }
}
