"""Faults that one call cannot show: state between calls, gradients of some inputs alone, the gradient of the LSE."""

from __future__ import annotations

from .places import LN2, RETURNED
from .source import ATTENTION, Edit, Mutant

_KEPT = LN2 + "\n_BUFFERS: dict[Any, Tensor] = {}"
_O = "    o = torch.empty_like(q, memory_format=torch.contiguous_format)\n"
_LSE = "    lse = torch.empty((B, H, M), dtype=torch.float32, device=q.device)\n"
_BACKWARD = "return *backward(q, k, v, o, lse2, do, dlse, ctx.launch), None"

MUTANTS = (
    Mutant("output-buffer-kept", "own: a workspace kept between calls",
           "Calls of one shape and dtype return the same memory: the second overwrites the first one's output.",
           ("out",),
           (Edit(ATTENTION, LN2, _KEPT),
            Edit(ATTENTION, _O, _O.replace("o = ", "fresh = ") +
                 "    o = _BUFFERS.setdefault((q.shape, q.dtype), fresh).detach()\n")),
           use="two results held at once"),
    Mutant("returned-lse-kept", "own: a workspace kept between calls",
           "Calls of one shape return their LSE in the same memory.", ("lse",),
           (Edit(ATTENTION, LN2, _KEPT),
            Edit(ATTENTION, RETURNED,
                 "return o, _BUFFERS.setdefault(lse2.shape, torch.empty_like(lse2)).detach().copy_(lse2 * LN2)")),
           use="two results held at once"),
    Mutant("lse-buffer-kept", "own: a workspace kept between calls",
           "All calls save their LSE in one buffer: a second forward before the backward changes the gradients.",
           ("dq", "dk", "dv"),
           (Edit(ATTENTION, LN2, _KEPT),
            Edit(ATTENTION, _LSE, _LSE.replace("lse = ", "fresh = ") +
                 "    lse = _BUFFERS.setdefault((B, H, M), fresh).detach()\n")),
           use="two forward passes before a backward pass"),
    Mutant("dq-alone", "own: delta is computed for dK's sake",
           "When only the query needs a gradient, delta is left out of it.", ("dq",),
           (Edit(ATTENTION, "        do = torch.zeros_like(o) if do is None else do\n",
                 "        do = torch.zeros_like(o) if do is None else do\n"
                 "        o = o if any(ctx.needs_input_grad[1:3]) else torch.zeros_like(o)\n"),),
           use="a gradient of the query alone"),
    Mutant("lse-gradient-ignored", "FlashAttention #404",
           "The gradient that comes back through the LSE is dropped.", ("dq", "dk"),
           (Edit(ATTENTION, _BACKWARD, _BACKWARD.replace("do, dlse", "do, None")),), use="a loss that holds the LSE"),
)  # fmt: skip
