"""Faults of rounding: too early, too often, or not to nearest.

Most are invisible to a comparison of largest errors with a tolerance; they are what statistics are for.
"""

from __future__ import annotations

from .places import ACC, ALPHA, BIAS, DELTA_STORE, DENOMINATOR, DS_OF_DQ, EXP2, P_LOW, ROW_SUM, WEIGHT_SUM
from .source import ATTENTION, BACKWARD, FORWARD, GRADIENTS, OUTPUTS, TILES, Edit, Mutant

_O = f"tl.div_rn(acc, {DENOMINATOR}[:, None])"
_DQ_DOT = 'dq_tile = tl.dot(ds.to(k.dtype.element_ty), k_tile, dq_tile, input_precision="ieee")'
_DK_DOT = 'dk_tile = tl.dot(ds.to(q.dtype.element_ty), q_tile, dk_tile, input_precision="ieee")'
_DV_DOT = 'dv_tile = tl.dot(p.to(do.dtype.element_ty), do_tile, dv_tile, input_precision="ieee")'
_DOT = 'tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee")'
_DOT_OF_DKDV = 'tl.dot(signed_k, tl.trans(q_tile), input_precision="ieee")'

_IN_BF16 = "(dp.to(tl.bfloat16).to(tl.float32) if k.dtype.element_ty == tl.bfloat16 else dp)"


def _rounded(value: str, tensor: str) -> str:
    """`value` rounded to the element type of `tensor`, in fp32."""
    return f"({value}).to({tensor}.dtype.element_ty).to(tl.float32)"


def _truncated(value: str, tensor: str) -> str:
    """`value` with the bits cut off that the element type of `tensor` has no room for (normal numbers)."""
    dtype = f"{tensor}.dtype.element_ty"
    kept = f"(-65536 if {dtype} == tl.bfloat16 else -8192 if {dtype} == tl.float16 else -1)"
    return f"(({value}).to(tl.int32, bitcast=True) & {kept}).to(tl.float32, bitcast=True)"


def _of_ten_bits(value: str) -> str:
    """The first ten significant bits of `value`, in fp32 (Veltkamp's splitting)."""
    return f"({value} * 16385.0 - ({value} * 16385.0 - {value}))"


def _result_rounded(line: str, tensor: str) -> str:
    """`x = ...` with the result rounded."""
    name, value = line.split(" = ", 1)
    return f"{name} = {_rounded(value, tensor)}"


_UNSCALED = " / (s * 1.4426950408889634)"
_SCORES_IN_BACKWARD = (
    Edit(BACKWARD, _DOT, _rounded(_DOT, "q")),
    Edit(BACKWARD, _DOT_OF_DKDV, _rounded(_DOT_OF_DKDV, "q")),
)


def _scaled(tile: str) -> str:
    """A tile times the scale and log2(e), rounded to the tile's dtype."""
    return f"({tile} * (s * 1.4426950408889634)).to({tile}.dtype)"


SCORES = (
    Mutant("scores-in-half-in-forward", "llama.cpp #7805, pytorch #119131",
           "The forward pass rounds q.k to the input's dtype, where it may overflow.", OUTPUTS,
           (Edit(FORWARD, _DOT, _rounded(_DOT, "q")),), subtle=True),
    Mutant("scores-in-half", "llama.cpp #7805",
           "Both passes round q.k to the input's dtype.", OUTPUTS,
           (Edit(FORWARD, _DOT, _rounded(_DOT, "q")), *_SCORES_IN_BACKWARD)
           , subtle=True),
    Mutant("keys-scaled-in-half", "Triton tutorial 06, `arg_k = arg_k * (ctx.sm_scale * RCP_LN2)`",
           "The backward pass multiplies the keys by the scale and rounds them.", GRADIENTS,
           (Edit(BACKWARD, _DOT, _DOT.replace("k_tile", _scaled("k_tile")) + _UNSCALED),
            Edit(BACKWARD, _DOT_OF_DKDV, _DOT_OF_DKDV.replace("signed_k", _scaled("signed_k")) + _UNSCALED)),
           subtle=True),
    Mutant("bias-in-half", "own: a product in the mask's dtype",
           "The bias times log2(e) is rounded to the bias's dtype.", OUTPUTS,
           (Edit(TILES, BIAS, "qk = qk * f + (bias * LOG2E).to(mask.dtype.element_ty).to(tl.float32)"),),
           "an additive bias", subtle=True),
)  # fmt: skip

WEIGHTS = (
    Mutant("exponent-in-half", "own: the argument of a fast exponential",
           "In the forward pass the score less the maximum is rounded to the input's dtype.", ("out",),
           (Edit(FORWARD, EXP2,
                 "p = tl.exp2((qk * f - m_safe[:, None]).to(v.dtype.element_ty).to(tl.float32))"),), subtle=True),
    Mutant("scores-in-half-in-backward", "own: S kept in half for the backward pass",
           "The backward pass recomputes P from scores rounded to the input's dtype.", GRADIENTS,
           _SCORES_IN_BACKWARD, subtle=True),
    Mutant("ds-of-ten-bits", "own: a narrow format for what goes through shared memory",
           "In the dQ pass dS keeps ten significant bits; fp16 has eleven.", ("dq",),
           (Edit(BACKWARD, "        dq_tile = tl.dot(ds.to",
                 f"        ds = {_of_ten_bits('ds')}\n"
                 "        dq_tile = tl.dot(ds.to"),),
           "fp16", subtle=True),
    Mutant("p-truncated", "ROCm/flash-attention #78",
           "P is truncated to the value's dtype instead of rounded.", ("out",),
           (Edit(FORWARD, P_LOW, f"p_low = {_truncated('p', 'v')}.to(v.dtype.element_ty)"),), subtle=True),
    Mutant("p-truncated-in-backward", "ROCm/flash-attention #78",
           "P is truncated before P^T dO.", ("dv",),
           (Edit(BACKWARD, _DV_DOT, _DV_DOT.replace("p.to(", _truncated("p", "do") + ".to(")),), subtle=True),
    Mutant("ds-truncated", "ROCm/flash-attention #78",
           "dS is truncated before both products that it enters.", ("dq", "dk"),
           (Edit(BACKWARD, _DQ_DOT, _DQ_DOT.replace("ds.to(", _truncated("ds", "k") + ".to(")),
            Edit(BACKWARD, _DK_DOT, _DK_DOT.replace("ds.to(", _truncated("ds", "q") + ".to("))), subtle=True),
)  # fmt: skip

ACCUMULATORS = (
    Mutant("output-accumulated-in-half", "ring-flash-attention #22, SageAttention's fp16 accumulators",
           "The output is rounded to the input's dtype after every tile.", ("out",),
           (Edit(FORWARD, ACC, _result_rounded(ACC, "v")),), subtle=True),
    Mutant("row-sum-in-half", "own: an accumulator of the input's dtype",
           "l is rounded to the input's dtype after every tile.", ("lse",),
           (Edit(FORWARD, ROW_SUM, _result_rounded(ROW_SUM, "v")),)),
    Mutant("weight-sum-in-half", "own: an accumulator of the input's dtype",
           "The sum that O is divided by is rounded to the input's dtype after every tile.", ("out",),
           (Edit(FORWARD, WEIGHT_SUM, _result_rounded(WEIGHT_SUM, "v")),), subtle=True),
    Mutant("rescale-in-half", "own: a factor of the input's dtype",
           "The factor that rescales sums and output is rounded to the input's dtype.", OUTPUTS,
           (Edit(FORWARD, ALPHA, _result_rounded(ALPHA, "v")),),
           "more than one tile of keys"),
    Mutant("output-alone-rescaled-in-half", "own: a factor of the input's dtype",
           "The output is rescaled by a factor in the input's dtype, the sums by one in fp32.", ("out",),
           (Edit(FORWARD, "acc * alpha[:, None]", f"acc * {_rounded('alpha', 'v')}[:, None]"),),
           "more than one tile of keys", subtle=True),
    Mutant("dq-accumulated-in-half", "own: an accumulator of the input's dtype",
           "dQ is rounded to the input's dtype after every tile.", ("dq",),
           (Edit(BACKWARD, _DQ_DOT, _result_rounded(_DQ_DOT, "k")),), "more than one tile of keys", subtle=True),
    Mutant("dv-accumulated-in-half", "own: an accumulator of the input's dtype",
           "dV is rounded to the input's dtype after every tile.", ("dv",),
           (Edit(BACKWARD, _DV_DOT, _result_rounded(_DV_DOT, "do")),),
           "more than one tile of queries, or grouped heads"),
    Mutant("delta-in-half", "own: a buffer of the input's dtype",
           "delta is kept in the input's dtype.", ("dq", "dk"),
           (Edit(BACKWARD, DELTA_STORE, DELTA_STORE.replace("sums", _rounded("sums", "o"))),)),
    Mutant("narrow-between-passes", "jax #40128",
           "With bf16 inputs delta keeps ten significant bits, and in odd heads of the dQ pass dP is rounded to bf16.",
           ("dq", "dk"),
           (Edit(BACKWARD, DELTA_STORE, DELTA_STORE.replace(
               "sums", f"{_of_ten_bits('sums')} if o.dtype.element_ty == tl.bfloat16 else sums")),
            Edit(BACKWARD, DS_OF_DQ, f"ds = p * (tl.where(h % 2 == 1, {_IN_BF16}, dp) - delta_tile[:, None])")),
           "bf16; spread weights", subtle=True),
)  # fmt: skip

STORES = (
    Mutant("output-truncated", "ROCm/flash-attention #78",
           "The output is truncated when it is stored.", ("out",),
           (Edit(FORWARD, _O, _truncated(_O, "o")),), subtle=True),
    Mutant("output-twice-rounded", "own: a scratch buffer in fp16",
           "A bf16 output passes through fp16: rounded twice, and lost below 2^-24.", ("out",),
           (Edit(FORWARD, _O, f"{_O}.to(tl.float16 if o.dtype.element_ty == tl.bfloat16 else tl.float32)"),),
           "bf16", subtle=True),
    Mutant("reciprocal-in-half", "own: a reciprocal of the input's dtype",
           "O is multiplied by the reciprocal of the sum, rounded to the input's dtype.", ("out",),
           (Edit(FORWARD, _O, f"acc * {_rounded('1.0 / tl.where(seen, w, 1.0)', 'o')}[:, None]"),), subtle=True),
    Mutant("dq-truncated", "ROCm/flash-attention #78",
           "dQ is truncated when it is stored.", ("dq",),
           (Edit(BACKWARD, "dq_tile * scale", _truncated("dq_tile * scale", "q")),), subtle=True),
    Mutant("dk-truncated", "ROCm/flash-attention #78",
           "dK is truncated when it is stored.", ("dk",),
           (Edit(BACKWARD, "dk_tile * scale", _truncated("dk_tile * scale", "k")),), subtle=True),
    Mutant("gradients-of-heads-rounded", "own: dK and dV per query head, summed by the host",
           "dK and dV of each query head are rounded before a group's are summed.", ("dk", "dv"),
           (Edit(BACKWARD, "        h = hk * GROUP + g\n",
                 "        h = hk * GROUP + g\n"
                 f"        dk_tile = {_rounded('dk_tile', 'k')}\n        dv_tile = {_rounded('dv_tile', 'v')}\n"),),
           "grouped heads", subtle=True),
    Mutant("lse-saved-in-half", "own: a buffer of the input's dtype",
           "The LSE is kept in the input's dtype, for the caller and for the backward pass.", ("lse",),
           (Edit(ATTENTION, "        o, lse2 = forward(q, k, v, launch)\n",
                 "        o, lse2 = forward(q, k, v, launch)\n        lse2 = lse2.to(q.dtype).float()\n"),)),
)  # fmt: skip

MUTANTS = (*SCORES, *WEIGHTS, *ACCUMULATORS, *STORES)
