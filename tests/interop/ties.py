"""Activations next to a tie: the run of a reference that rounds them as another engine did.

An activation a few units in the last place from a tie is rounded apart by equally valid orders of summation, and all
that follows differs by that code: logits move by up to 1e-1, more with every layer. So `nearest` looks for those that the
other engine rounded the other way: at the first token of a row whose logits differ, among the ties of that token (one or
two, usually) and then of those before it, which may show only now, through attention, keeping what brings its logits nearer.
That mends no wrong weight, scale or formula: every token would know. A first token whose values are small integers times a
scale after attention can have dozens of ties at once: where they cannot be told apart, that token is left out, and counted.
"""
import itertools
from contextlib import contextmanager

import torch
from transformers.integrations import bitnet

MARGIN = 2e-4  # codes between an activation and a tie for both roundings to be valid
MARGIN_F16 = 2e-3  # the same for a scale in f16, in units of its last place
MANY = 64  # ties of tokens before one, the nearest, that are tried
PAIRED = 12  # ties of a token of which pairs are tried
TOO_MANY = 8  # ties of one vector: each may fall either way, and what follows from all cannot be told apart
SAME = 3e-5  # mean difference of a token's logits that the order of summation explains


class Ties:
    """One run: the ties that it met, and those that it rounds the other way, for each row as (token, call, place).

    `met` says with each at which tie it is: equal activations, as heads that share a value have them, are one."""

    def __init__(self, moved: list[set]):
        self.moved, self.met = moved, [{} for _ in moved]
        self.call, self.last, self.result = -1, None, None

    def across(self, x, t, margin):
        """`x` [batch, seq, d] with the moved ones on the other side of the tie of `x * t`; the same for the same x again."""
        if x is self.last:
            return self.result
        self.call, self.last = self.call + 1, x
        codes, y, t = x * t, x.clone(), t.expand_as(x)
        tie = codes.floor() + 0.5
        for row, token, place in ((codes - tie).abs() < margin).nonzero().tolist():
            self.met[row][token, self.call, place] = tie[row, token, place].item()
        for row, moved in enumerate(self.moved):
            for token, call, place in moved:
                if call == self.call:
                    at = row, token, place
                    y[at] = (tie[at] + (margin if codes[at].round() < tie[at] else -margin)) / t[at]
        self.result = y
        return y


RUN: Ties | None = None  # the run in progress


def across(x, t, margin=None):
    """What a quantizer takes instead of `x` [batch, seq, d] if it rounds `x * t`."""
    return x if RUN is None else RUN.across(x, t, margin or MARGIN)


def per_token(x):
    return 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)


@contextmanager
def in_transformers():
    """transformers' own quantizers, of both its classes of linear maps, ask `across`."""
    auto, packed = bitnet.ActQuant, bitnet.BitLinear.activation_quant

    class ActQuant:
        @staticmethod
        def apply(x):
            return auto.apply(across(x, per_token(x)))

    bitnet.ActQuant = ActQuant
    bitnet.BitLinear.activation_quant = lambda self, x: packed(self, across(x, per_token(x)))
    try:
        yield
    finally:
        bitnet.ActQuant, bitnet.BitLinear.activation_quant = auto, packed


def run(model, ids, moved):
    global RUN
    RUN = Ties(moved)
    try:
        with torch.no_grad(), in_transformers():
            return model(ids, use_cache=False).logits.float(), RUN.met
    finally:
        RUN = None


def nearest(model, ids, found):
    """The run of `model` on `ids` [batch, seq] that is nearest to the logits `found`, and in words what was moved for it."""
    rows = [nearest_row(model, ids[i : i + 1], found[i : i + 1]) for i in range(len(ids))]
    left_out = sum(n for _, _, n in rows)
    words = f"{sum(n for _, n, _ in rows)} ties" + (f", {left_out} tokens of many ties left out" if left_out else "")
    return torch.cat([logits for logits, _, _ in rows]), words


def nearest_row(model, ids, found):
    moved, given_up, left_out = frozenset(), 0, []  # tokens before `given_up` are settled
    tried = {moved}  # two tokens that want different ties would take turns for ever
    logits, met = run(model, ids, [moved])
    while True:
        off = (logits - found).abs().mean(-1)[0]
        differ = [token for token in range(given_up, ids.shape[1]) if off[token] > SAME]
        if not differ:
            logits[0, left_out] = found[0, left_out]
            return logits, len(moved), len(left_out)
        token = differ[0]
        own = sorted(tie for tie in met[0] if tie[0] == token)
        equal = [[other for other in own if other[1] == tie[1] and met[0][other] == met[0][tie]] for tie in own]
        before = sorted((tie for tie in met[0] if tie[0] < token), key=lambda tie: (-tie[0], tie[1]))[:MANY]
        groups = (own, [*equal, *itertools.combinations(own[:PAIRED], 2)]), (before, [])
        for candidate in candidates(model, ids, moved, logits, found, token, groups):
            if candidate in tried:
                continue
            logits_now, met_now = run(model, ids, [candidate])
            off_now = (logits_now - found).abs().mean(-1)[0]
            settled = (off_now[:token] <= off[:token].clamp(min=SAME)).all()
            if settled and off_now[token] < 0.7 * off[token]:
                moved, logits, met = candidate, logits_now, met_now
                tried.add(moved)
                break
        else:
            given_up = token + 1
            calls = [call for _, call, _ in own]
            if any(calls.count(call) > TOO_MANY for call in calls):
                left_out.append(token)


def candidates(model, ids, moved, logits, found, token, groups):
    """Sets of ties to move for the logits of `token`: of each group the tie or set that explains most of the difference, then
    those ties that explain it together, as least squares of what each of them does alone."""
    missing = (found - logits)[0, token]
    for ties, sets in groups:
        if not ties:
            continue
        some = [moved ^ set(each) for each in [*zip(ties), *sets]]
        runs = [run(model, ids.expand(len(part), -1), part)[0][:, token] for part in batched(some, 32)]
        effects = torch.cat(runs) - logits[0, token]
        yield some[(effects - missing).abs().mean(-1).argmin()]
        alone = effects[: len(ties)]
        shares = torch.linalg.lstsq(alone.T, missing.unsqueeze(-1), driver="gelsd").solution
        yield moved ^ {tie for tie, share in zip(ties, shares) if share > 0.5}


def batched(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]
