"""Faults in which keys a query may see: ends of the sequence, causal masks, windows, masks of the caller's."""

from __future__ import annotations

from .places import BIAS, DENOMINATOR, EXP2, HIDDEN, MAXIMUM_LINE
from .source import ATTENTION, BACKWARD, FORWARD, GRADIENTS, OUTPUTS, TILES, Edit, Mutant

_COMMON = "    common = launch.arguments(q, k, v, do, dq, dk, dv)\n"
_P_OF_DKDV, _P_OF_DQ = "tl.exp2(qk * f - lse_tile[None, :])", "tl.exp2(qk * f - lse_tile[:, None])"
_LENGTHS = "tl.load(key_lengths + b, mask=has_lengths != 0, other=N).to(tl.int32)"
_KEYS = "range(low, high, BLOCK_N)"
_RIGHT = "        right=right,\n"


def _in_backward(change: str) -> tuple[Edit, ...]:
    """The arguments that the backward kernels share, changed."""
    return (Edit(ATTENTION, _COMMON, f"{_COMMON[:-1]} | {change}\n"),)


ENDS = (
    Mutant("tail-keys-counted", "tiny-flash-attention #12, JAX Pallas #27224, SageAttention #19",
           "Keys past the end of the last tile enter the softmax with a logit of 0.", OUTPUTS,
           (Edit(FORWARD, MAXIMUM_LINE, "        qk = tl.where(offs_n[None, :] < keys, qk, 0.0)\n" + MAXIMUM_LINE),),
           "key lengths that no tile divides"),
    Mutant("tail-keys-in-backward", "FA2 #443",
           "The backward pass has P of keys past the end as exp(0 - LSE), which overflows for very negative LSE.",
           GRADIENTS,
           (Edit(BACKWARD, _P_OF_DKDV, _P_OF_DKDV.replace("qk", "tl.where(offs_n[:, None] < keys, qk, 0.0)")),
            Edit(BACKWARD, _P_OF_DQ, _P_OF_DQ.replace("qk", "tl.where(offs_n[None, :] < keys, qk, 0.0)"))),
           "key padding, or logits far below 0"),
    Mutant("last-visible-tile-missed", "own: a missing + 1 in a tile bound",
           "The bound of the key loop is the last visible key, not one past it, so that a tile of one key is dropped.",
           OUTPUTS, (Edit(TILES, "last_query + diagonal + right + 1)", "last_query + diagonal + right)"),),
           "causal or windowed, M = 33, 65, ... or an offset diagonal"),
    Mutant("first-visible-tile-missed", "own: a bound rounded up instead of down",
           "With a left window the key loop starts at the first whole tile.", OUTPUTS,
           (Edit(TILES, "low = tl.maximum(start_m + diagonal - left, 0) // BLOCK_N * BLOCK_N",
                 "low = (tl.maximum(start_m + diagonal - left, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N"),),
           "a left window"),
    Mutant("last-query-of-window-missed", "own: the same missing + 1, in the backward pass",
           "dK and dV lose the last query that sees a tile of keys when it begins a tile of its own.", ("dk", "dv"),
           (Edit(TILES, "last_key - diagonal + left + 1)", "last_key - diagonal + left)"),), "a left window"),
    Mutant("tail-of-one-key-dropped", "own: a tail of one key left out",
           "A last tile that holds a single key is skipped.", OUTPUTS,
           (Edit(FORWARD, _KEYS,
                 "range(low, high - (high > BLOCK_N) * (high % BLOCK_N == 1), BLOCK_N)"),), "N = 33, 65, 97, 129"),
    Mutant("keys-beyond-256-ignored", "own: a loop bound from a tuned configuration",
           "No query looks at keys from 256 on.", OUTPUTS,
           (Edit(FORWARD, _KEYS, "range(low, tl.minimum(high, 256), BLOCK_N)"),),
           "N > 256: profile ci"),
)  # fmt: skip

CAUSAL = (
    Mutant("causal-ignored-in-backward", "Triton tutorial #4541, #5660",
           "The backward kernels never mask the future.", GRADIENTS, _in_backward('{"right": UNBOUNDED}'),
           "causal, or a right window"),
    Mutant("causal-always-top-left", "FlashAttention #282, pytorch #108108",
           "Bottom-right alignment is taken for top-left.", OUTPUTS,
           (Edit(ATTENTION, 'diagonal=N - M if alignment == "bottom-right" else 0', "diagonal=0"),),
           "causal or windowed, M != N"),
    Mutant("causal-diagonal-hidden", "own: a strict inequality in the causal mask",
           "A causal query does not see its own key.", OUTPUTS,
           (Edit(ATTENTION, "    o, lse = FlashAttention.apply(",
                 "    launch = launch if not is_causal else replace(launch, diagonal=launch.diagonal - 1)\n"
                 "    o, lse = FlashAttention.apply("),
            Edit(ATTENTION, "from dataclasses import dataclass", "from dataclasses import dataclass, replace")),
           "causal"),
)  # fmt: skip

WINDOWS = (
    Mutant("window-left-exclusive", "transformers #39408, TE #1197",
           "The window's left end is not part of it.", OUTPUTS,
           (Edit(TILES, "(j >= i + diagonal - left)", "(j > i + diagonal - left)"),), "a left window"),
    Mutant("window-right-exclusive", "TE #1212",
           "The window's right end is not part of it, unless it is the diagonal.", OUTPUTS,
           (Edit(TILES, "(j <= i + diagonal + right)\n", "(j < i + diagonal + right + (right == 0))\n"),),
           "a right window"),
    Mutant("window-right-ignored", "jax #39576",
           "The right end of a window counts only together with a causal mask.", OUTPUTS,
           (Edit(ATTENTION, _RIGHT, "        right=right if is_causal else None,\n"),), "a right window, not causal"),
    Mutant("wide-window-drops-causality", "tlc-pack/libflash_attn #11",
           "A window at least as wide as the sequence is switched off, and its right end with it.", OUTPUTS,
           (Edit(ATTENTION, _RIGHT, "        right=right if left is None or left < N else None,\n"),),
           "a window of at least N keys"),
    Mutant("window-drops-causality", "own: one mask replaces the other",
           "A causal mask is forgotten when there is a window.", OUTPUTS,
           (Edit(ATTENTION, "    if is_causal:\n", "    if is_causal and window == (None, None):\n"),),
           "causal with a window"),
    Mutant("unbounded-window-is-a-number", "TE #3528, #3532",
           "A left side without a limit is passed on as -1, and -1 is taken for an extent.", OUTPUTS,
           (Edit(ATTENTION, "        left=left,\n", "        left=-1 if left is None and right else left,\n"),),
           "a window (None, right)"),
)  # fmt: skip

EMPTY = (
    Mutant("first-tile-hidden", "executorch #10466, vLLM #4405, aiter #2505",
           "A row that sees nothing of its first tile takes -inf from -inf.", OUTPUTS,
           (Edit(FORWARD, 'm_safe = tl.where(m_new == float("-inf"), 0.0, m_new)', "m_safe = m_new"),),
           "first tile hidden, or empty rows"),
    Mutant("mask-value-minus-10000", "nGPT #11, burn #4697",
           "Hidden logits are -10000 instead of -inf.", OUTPUTS, (Edit(TILES, HIDDEN, "qk = tl.where(visible, qk, "
           "-10000.0 / f)"),), "empty rows, or logits below -10000"),
    Mutant("hidden-keys-leak", "own: an exponential that never returns 0",
           "The exponent is clamped at -24, so that hidden keys keep a weight of 2^-24.", OUTPUTS,
           (Edit(FORWARD, EXP2, "p = tl.exp2(tl.maximum(qk * f - m_safe[:, None], -24.0))"),
            ), "any mask, or lengths that no tile divides", subtle=True),
    Mutant("empty-row-is-nan", "flash-attention's reference, pytorch #41508",
           "The output of a row without keys is 0 / 0.", ("out",),
           (Edit(FORWARD, DENOMINATOR, "w"),), "empty rows"),
)  # fmt: skip

CALLERS = (
    Mutant("key-lengths-one-too-many", "own: a length for the index of the last key",
           "Each batch element sees one key past its length.", OUTPUTS,
           (Edit(FORWARD, _LENGTHS, f"({_LENGTHS} + has_lengths)"),), "key lengths"),
    Mutant("key-lengths-ignored-in-backward", "own: padding that one pass takes",
           "The backward kernels know nothing of the key lengths.", GRADIENTS,
           _in_backward('{"has_lengths": 0}'), "key lengths"),
    Mutant("boolean-mask-ignored-in-tail", "own: a tail of the mask that is not loaded",
           "The mask is not read for the last, partial tile of keys.", OUTPUTS,
           (Edit(TILES, "(tl.load(pointers, mask=(i < M) & (j < N), other=0) != 0)",
                 "((tl.load(pointers, mask=(i < M) & (j < N), other=0) != 0) | (j >= N // 32 * 32))"),),
           "a boolean mask, N that no tile divides"),
    Mutant("bias-forgotten-in-backward", "own: a bias that one pass takes",
           "The backward kernels add no bias.", GRADIENTS,
           (Edit(ATTENTION, _COMMON, _COMMON + '    common["MASK_KIND"] &= 1\n'),), "an additive bias"),
    Mutant("bias-in-the-wrong-base", "own: logits in base 2, the bias in base e",
           "The bias is added without log2(e).", OUTPUTS,
           (Edit(TILES, BIAS, "qk = qk * f + bias"),), "an additive bias"),
    Mutant("mask-of-batch-0", "own: a mask's batch stride that is never applied",
           "The mask's batch stride is not applied.", OUTPUTS,
           (Edit(FORWARD, "mask += b * stride_mb + h * stride_mh", "mask += h * stride_mh"),), "a mask per batch"),
)  # fmt: skip

MUTANTS = (*ENDS, *CAUSAL, *WINDOWS, *EMPTY, *CALLERS)
