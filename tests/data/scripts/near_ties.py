"""Transformers with every activation that lies next to a tie, by default within 5e-6 codes, rounded the other way.

Such an activation is about a unit in the last place from its tie, so two equally valid orders of summation round it apart,
and all that follows differs by single codes. A comparison with both runs tells such a flip from a mistake.
"""
from contextlib import contextmanager

import torch
from transformers.integrations import bitnet

NEAR_TIE = 5e-6  # codes


@contextmanager
def rounded_the_other_way(margin: float = NEAR_TIE):
    """Moves near ties across while it lasts; yields the list of their indices, one entry per quantized input."""
    moved, act_quant, activation_quant = [], bitnet.ActQuant, bitnet.BitLinear.activation_quant

    @torch.no_grad()
    def across(x):
        t = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        tie = (x * t).floor() + 0.5
        off = x * t - tie
        near = off.abs() < margin
        moved.extend(near.nonzero().tolist())
        target = torch.where(off >= 0, tie - 2 * margin, tie + 2 * margin) / t
        return torch.where(near, target - x, torch.zeros_like(x))

    class Moved:
        @staticmethod
        def apply(x):
            return act_quant.apply(x + across(x))

    bitnet.ActQuant = Moved
    bitnet.BitLinear.activation_quant = lambda layer, x, *rest: activation_quant(layer, x + across(x), *rest)
    try:
        yield moved
    finally:
        bitnet.ActQuant, bitnet.BitLinear.activation_quant = act_quant, activation_quant
