"""Faults of the online softmax: its rescaling, its maximum, its constants."""

from __future__ import annotations

from .places import ALPHA, DENOMINATOR, EXP2, LOG2E, MAXIMUM, ROW_SUM, SCALE, WEIGHT_SUM
from .source import ATTENTION, FORWARD, OUTPUTS, TILES, Edit, Mutant

_START = 'm_i = tl.full([BLOCK_M], float("-inf"), tl.float32)'
_UNLESS_LAST = "tl.where(start_n + BLOCK_N < high, alpha, 1.0)"

RESCALING = (
    Mutant("row-sum-not-rescaled", "own: the classic",
           "l is not rescaled when the maximum grows.", ("lse",), (Edit(FORWARD, ROW_SUM, "l_i = l_i + tl.sum(p, 1)"),),
           "more than one tile of keys"),
    Mutant("sums-not-rescaled-at-the-end", "own: a peeled last iteration",
           "At the last tile neither row sum is rescaled.", OUTPUTS,
           tuple(Edit(FORWARD, line, line.replace("alpha", _UNLESS_LAST)) for line in (ROW_SUM, WEIGHT_SUM)),
           "more than one tile of keys; rows whose maximum is in the last"),
    Mutant("conditional-rescale-in-two-frames", "rocm-libraries #6498, MSLK #242",
           "While the maximum grows by less than 2^8 nothing is rescaled and the old maximum kept, but P is taken "
           "against the new one.", OUTPUTS,
           (Edit(FORWARD, ALPHA, "alpha = tl.where(m_new - m_i <= 8.0, 1.0, tl.exp2(m_i - m_safe))"),
            Edit(FORWARD, "        m_i = m_new\n", "        m_i = tl.where(m_new - m_i <= 8.0, m_i, m_new)\n")),
           "more than one tile of keys"),
    Mutant("maximum-lags-a-tile", "own: a pipelined maximum",
           "P of a tile is taken against the maximum of the tiles before it, the sums against the new one.", OUTPUTS,
           (Edit(FORWARD, EXP2,
                 'p = tl.exp2(qk * f - tl.where(m_i == float("-inf"), m_safe, m_i)[:, None])'),),
           "more than one tile of keys"),
)  # fmt: skip

MAXIMA = (
    Mutant("maximum-of-unscaled-logits", "own: a maximum taken before a scale that may be negative",
           "The maximum is taken before the scale: below 0 it is the minimum, and P overflows.", OUTPUTS,
           (Edit(FORWARD, MAXIMUM,
                 'm_new = tl.maximum(m_i, tl.where(scale < 0.0, tl.min(tl.where(qk == float("-inf"), float("inf"), '
                 'qk), 1), tl.max(qk, 1)) * f)'),), "a scale below 0"),
    Mutant("maximum-starts-at-0", "own: zeros where -inf belongs",
           "The running maximum starts at 0, so that rows of very negative logits underflow.", OUTPUTS,
           (Edit(FORWARD, _START, "m_i = tl.zeros([BLOCK_M], tl.float32)"),), "rows of negative logits", subtle=True),
    Mutant("maximum-starts-at-minus-10000", "burn #4697",
           "The running maximum starts at -10000: rows below it are taken for empty.", OUTPUTS,
           (Edit(FORWARD, _START, "m_i = tl.full([BLOCK_M], -10000.0, tl.float32)"),),
           "extreme logits with a scale below 0"),
    Mutant("maximum-of-first-tile", "own: a maximum computed once",
           "The maximum is that of the first visible tile; P of later tiles may overflow.", OUTPUTS,
           (Edit(FORWARD, MAXIMUM, 'm_new = tl.where(m_i == float("-inf"), tl.max(qk, 1) * f, m_i)'),),
           "rows that grow by more than 11 after the first tile", subtle=True),
    Mutant("maximum-in-half", "pytorch #121558, torch-mojo #398",
           "The maximum is rounded to the input's dtype, so that P exceeds 1, and overflows for large logits.", OUTPUTS,
           (Edit(FORWARD, MAXIMUM,
                 "m_new = tl.maximum(m_i, (tl.max(qk, 1) * f).to(q.dtype.element_ty).to(tl.float32))"),),
           "large logits: in fp16 infinite, in bf16 off by more than 16", subtle=True),
)  # fmt: skip

CONSTANTS = (
    Mutant("log2e-in-bf16", "own: a constant in the tensor's dtype",
           "log2(e) is 1.4453125, as bf16 holds it.", OUTPUTS, (Edit(TILES, LOG2E, "1.4453125)"),)),
    Mutant("log2e-3-digits", "own: a constant typed by hand",
           "log2(e) is 1.443.", OUTPUTS, (Edit(TILES, LOG2E, "1.443)"),)),
    Mutant("exp2-quadratic", "own: an emulated exponential, a degree too low",
           "2^x is a quadratic polynomial between integers, 0.2 % off.", OUTPUTS,
           (Edit(FORWARD, "        p = tl.exp2(qk * f - m_safe[:, None])  # [BLOCK_M, BLOCK_N]\n",
                 "        x = tl.maximum(qk * f - m_safe[:, None], -126.0)\n"
                 "        r = x - tl.floor(x)\n"
                 "        p = tl.exp2(tl.floor(x)) * (1.0 + r * (0.6565 + r * 0.3435))\n"
                 '        p = tl.where(qk == float("-inf"), 0.0, p)\n'),)),
    Mutant("epsilon-in-the-denominator", "own: a guard against division by 0",
           "O is divided by the sum + 0.001.", ("out",),
           (Edit(FORWARD, DENOMINATOR, "tl.where(seen, w + 0.001, 1.0)"),)),
    Mutant("small-epsilon-in-the-denominator", "own: a guard against division by 0",
           "O is divided by the sum + 0.00015: less than half a unit in the last place of fp16.", ("out",),
           (Edit(FORWARD, DENOMINATOR, "tl.where(seen, w + 0.00015, 1.0)"),), subtle=True),
)  # fmt: skip

SCALES = (
    Mutant("scale-off-by-a-thousandth", "own: a scale from a table",
           "The scale is 0.1 % too large.", OUTPUTS,
           (Edit(ATTENTION, SCALE, "scale=1.001 * (1.0 / math.sqrt(D) if scale is None else float(scale)),"),)),
    Mutant("scale-off-by-2e-4", "own: a scale from a table",
           "The scale is 0.02 % too large.", OUTPUTS,
           (Edit(ATTENTION, SCALE, "scale=1.0002 * (1.0 / math.sqrt(D) if scale is None else float(scale)),"),)),
    Mutant("scale-of-padded-head", "own: the kernel's head dimension for the model's",
           "The default scale is 1 / sqrt of D rounded up to a power of two.", OUTPUTS,
           (Edit(ATTENTION, SCALE, "scale=1.0 / math.sqrt(block_d(D)) if scale is None else float(scale),"),),
           "the default scale, D no power of two or below 16"),
    Mutant("scale-0-is-no-scale", "own: `scale or default`",
           "A scale of 0 is taken for the default.", OUTPUTS,
           (Edit(ATTENTION, SCALE, "scale=float(scale or 1.0 / math.sqrt(D)),"),), "scale = 0"),
)  # fmt: skip

MUTANTS = (*RESCALING, *MAXIMA, *CONSTANTS, *SCALES)
