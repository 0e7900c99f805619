"""Faults of the Python around the kernels: errors, dtypes, state between calls, paths that tests do not take."""

from __future__ import annotations

from .places import LN2, P_LOW, RETURNED, SCALE
from .source import ATTENTION, FORWARD, OUTPUTS, Edit, Mutant

_TILES = "        tiles=tiles,"
_CALLS = LN2 + "\n_CALLS: list[int] = []"
_FORWARD_ENDS = "    return o, lse\n\n\ndef backward("

MUTANTS = (
    Mutant("output-in-fp32", "own: an accumulator returned as it is",
           "The output is fp32, whatever the inputs are.", (),
           (Edit(ATTENTION, RETURNED, "return o.float(), lse2 * LN2"),)),
    Mutant("inference-ignores-causality", "own: a separate path for inference",
           "Where the log-sum-exp is returned without gradients, a causal mask is forgotten.", OUTPUTS,
           (Edit(ATTENTION, "    if is_causal:\n",
                 "    if is_causal and (not return_lse or any(x.requires_grad for x in (query, key, value))):\n"),),
           "causal, without gradients, with the log-sum-exp"),
    Mutant("inference-scale-off", "FlashAttention #907: training and inference differ",
           "Without gradients the scale is 0.2 % larger.", OUTPUTS,
           (Edit(ATTENTION, SCALE, "scale=(1.0 if any(x.requires_grad for x in (query, key, value)) else 1.002) * "
                 "(1.0 / math.sqrt(D) if scale is None else float(scale)),"),), "without gradients"),
    Mutant("tiles-by-call", "own: autotuning that goes on in use",
           "Every other call takes other tiles: each is right, but no two agree.", OUTPUTS,
           (Edit(ATTENTION, LN2, _CALLS),
            Edit(ATTENTION, _TILES, "        tiles=((32, 32), (16, 16))[len(_CALLS) % 2] if tiles is None else tiles,"),
            Edit(ATTENTION, "    left, right = window\n", "    left, right = window\n    _CALLS.append(0)\n")),
           "more than one tile of keys"),
    Mutant("tiles-at-random", "own: autotuning by timing",
           "The tiles are chosen at random: each choice is right, but no two calls agree.", OUTPUTS,
           (Edit(ATTENTION, _TILES,
                 "        tiles=((32, 32), (16, 16))[int(torch.rand(()) < 0.5)] if tiles is None "
                 "else tiles,"),),
           "more than one tile of keys"),
    Mutant("key-lost-at-random", "own: a race that is lost now and then",
           "One call in eight does not see the last key.", OUTPUTS,
           (Edit(ATTENTION, "        key_lengths=None if key_lengths is None",
                 "        key_lengths=torch.full((B,), max(N - 1, 1), dtype=torch.int32, device=query.device)\n"
                 "        if key_lengths is None and torch.rand(()) < 0.125 else None if key_lengths is None"),),
           "one call in eight"),
    Mutant("first-call-wrong", "own: a tuner that runs the kernel on the caller's buffers",
           "The first call of a process adds its output twice.", ("out",),
           (Edit(ATTENTION, LN2, _CALLS),
            Edit(ATTENTION, _FORWARD_ENDS,
                 "    if not _CALLS:\n        o *= 2\n    _CALLS.append(0)\n    return o, lse\n\n\ndef backward(")),
           "the first call of a process"),
    Mutant("stochastic-rounding", "own: dropout left on",
           "The output is rounded at random.", ("out",),
           (Edit(ATTENTION, _FORWARD_ENDS,
                 "    return o * (1 + torch.rand_like(o.float()) * 2**-10).to(o.dtype), lse\n\n\ndef backward("),)),
    Mutant("wide-heads-in-bf16", "own: a launch configuration cached by shape",
           "From D = 64 on P passes through bf16: a configuration for another dtype.", ("out",),
           (Edit(FORWARD, P_LOW,
                 "p_low = tl.where(HEAD_DIM >= 64, p.to(tl.bfloat16).to(tl.float32), p)"
                 ".to(v.dtype.element_ty)"),), "fp16, D >= 64"),
)  # fmt: skip
