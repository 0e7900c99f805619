"""Problems whose answer follows from the answer to another: none needs a reference of its own.

Each relation makes a twin of a case (q and k in other units, heads in another order, hidden keys with other contents,
the last query alone, ...), and says how the twin's results are read as the original's.  The twin is held to the
original's truth and bound (with a gradient through the LSE: to its own).  Where memory too is laid out alike and only
values differ, the two computations are the same operation for operation, and must agree to the bit; not so dq and dk,
whose sums of dS a library may take in another order.  A relation that does not apply to a case gives None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from ..reports.record import TENSORS
from .case import Case
from .draws import Draws
from .inputs import Inputs
from .twin import GRADIENTS, Twin, View, on_axis, same, times, with_masks, with_values

Relation = Callable[[Case, Inputs], Twin | None]
RELATIONS: dict[str, Relation] = {}


def _relation(name: str) -> Callable[[Relation], Relation]:
    def register(relation: Relation) -> Relation:
        RELATIONS[name] = relation
        return relation

    return register


def twins(case: Case, inputs: Inputs) -> Iterator[tuple[str, Twin]]:
    """All that apply, in an order drawn from the case's seed."""
    for name in Draws(case.seed, "relation").shuffled(list(RELATIONS)):
        twin = RELATIONS[name](case, inputs)
        if twin is not None:
            yield name, twin


# -- other units: powers of two commute with every rounding ------------------------------------------------------------


def _halved(x: Tensor) -> Tensor:
    return x / 2 if x.dtype == torch.float64 else x.double() / 2


def _doubled(x: Tensor) -> Tensor:
    return x.double() * 2


@_relation("V -> 2V")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if (v := times(inputs.v, 2.0)) is None:
        return None
    read = {"out": _halved, "lse": same, "dq": _halved, "dk": _halved, "dv": same}
    return Twin(case, replace(inputs, v=v), read, bits=frozenset({"out", "lse", "dv"}))


@_relation("dO -> 2dO")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not case.backward or (do := times(inputs.do, 2.0)) is None:
        return None
    # in fp16 a partial sum that is stored on the way may be subnormal
    bits = frozenset({"dv"}) if case.dtype != "fp16" else frozenset[str]()
    return Twin(case, replace(inputs, do=do), dict.fromkeys(GRADIENTS, _halved), bits=bits)


@_relation("(q, k) -> (2q, k/2)")
def _(case: Case, inputs: Inputs) -> Twin | None:
    q, k = times(inputs.q, 2.0), times(inputs.k, 0.5)
    if q is None or k is None:
        return None
    read = {"out": same, "lse": same, "dq": _doubled, "dk": _halved, "dv": same}
    # a kernel that multiplies q or k by the scale in fp16 first may meet subnormal numbers there
    bits = frozenset({"out", "lse", "dv"}) if case.dtype != "fp16" else frozenset[str]()
    return Twin(case, replace(inputs, q=q, k=k), read, bits=bits)


# -- another order -----------------------------------------------------------------------------------------------------


def _plain(case: Case) -> bool:
    """No tensor is a view that repeats itself: parts of it can be changed."""
    return case.layout != "expanded"


@_relation("batch and head groups in reverse order")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not _plain(case) or case.B * case.HK == 1:
        return None
    m = inputs.mask

    def groups(x: Tensor, axis: int) -> Tensor:
        """The order within a group stays: it is that in which gradients are summed."""
        return torch.unflatten(x, axis, (case.HK, -1)).flip(axis - 1).flatten(axis - 1, axis)

    def reverse(x: Tensor) -> Tensor:
        return groups(x.flip(0).movedim(1, -1), -1).movedim(-1, 1)

    def mask(x: Tensor | None) -> Tensor | None:
        x = on_axis(x, -4, lambda y: y.flip(-4))
        return on_axis(x, -3, lambda y: groups(y.movedim(-3, -1), -1).movedim(-1, -3))

    lengths = None if m.key_lengths is None else m.key_lengths.flip(0)
    changed = replace(with_masks(m, mask), key_lengths=lengths)
    q, k, v, do = (with_values(x, reverse) for x in (inputs.q, inputs.k, inputs.v, inputs.do))
    return Twin(case, Inputs(q, k, v, do, changed), dict.fromkeys(TENSORS, reverse))


def _positional(case: Case) -> bool:
    return case.mask.causal or case.mask.window is not None


def _backwards(x: Tensor) -> Tensor:
    return x.flip(2)


def _reversed(case: Case, inputs: Inputs, names: tuple[str, ...], axis: int, along: tuple[str, ...]) -> Twin:
    """The named inputs and an axis of the masks in reverse; so are the results that lie `along` it."""
    changed = {n: with_values(getattr(inputs, n), _backwards) for n in names}
    mask = with_masks(inputs.mask, lambda x: on_axis(x, axis, lambda y: y.flip(axis)))
    read: dict[str, View] = {n: _backwards if n in along else same for n in TENSORS}
    return Twin(case, replace(inputs, **changed, mask=mask), read)


@_relation("keys in reverse order")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not _plain(case) or _positional(case) or case.mask.key_lengths or case.N < 2:
        return None
    return _reversed(case, inputs, ("k", "v"), -1, ("dk", "dv"))


@_relation("queries in reverse order")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not _plain(case) or _positional(case) or case.M < 2:
        return None
    return _reversed(case, inputs, ("q", "do"), -2, ("out", "lse", "dq"))


# -- what nobody sees --------------------------------------------------------------------------------------------------


@_relation("other contents in hidden keys and values")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not _plain(case) or case.empty:
        return None
    visible, _ = inputs.mask.rows(0, case.M, case.M, case.N, inputs.q.device)
    seen = visible.expand(case.B, case.H, case.M, case.N).any(2)  # [B, H, N]
    hidden = ~torch.unflatten(seen, 1, (case.HK, case.H // case.HK)).any(2)  # [B, HK, N]
    if not hidden.any():
        return None

    def other(x: Tensor) -> Tensor:
        return torch.where(hidden[..., None], 5.0 - 2.0 * x.clamp(-64.0, 64.0), x)

    k, v = (with_values(x, other) for x in (inputs.k, inputs.v))
    return Twin(case, replace(inputs, k=k, v=v), dict.fromkeys(TENSORS, same), bits=frozenset({"out", "lse"}))


@_relation("dO of one query alone")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not _plain(case) or not case.backward or case.M < 2:
        return None
    row = int(Draws(case.seed, "row").integers(0, case.M, 1)[0])

    def alone(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy_(2, torch.tensor([row], device=x.device), x[:, :, row : row + 1])

    def own(x: Tensor) -> Tensor:
        return x[:, :, row : row + 1]

    return Twin(case, replace(inputs, do=with_values(inputs.do, alone)), {"dq": own}, part=own)


# -- a part of the problem ---------------------------------------------------------------------------------------------


@_relation("the last query alone")
def _(case: Case, inputs: Inputs) -> Twin | None:
    """Decoding gives what prefilling gave."""
    if case.M < 2 or (_positional(case) and case.mask.alignment != "bottom-right"):
        return None
    last = slice(case.M - 1, case.M)

    def part(x: Tensor) -> Tensor:
        return x[:, :, last]

    mask = with_masks(inputs.mask, lambda x: on_axis(x, -2, lambda y: y[..., last, :]))
    cut = replace(inputs, q=inputs.q[:, :, last], do=inputs.do[:, :, last], mask=mask)
    return Twin(case.with_(M=1), cut, dict.fromkeys(("out", "lse", "dq"), same), part=part)


@_relation("the first half of a causal sequence")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not case.mask.causal or case.M != case.N or case.M < 2 or case.mask.key_lengths:
        return None
    n = (case.M + 1) // 2

    def part(x: Tensor) -> Tensor:
        return x[:, :, :n]

    def cut(x: Tensor | None) -> Tensor | None:
        return on_axis(on_axis(x, -2, lambda y: y[..., :n, :]), -1, lambda y: y[..., :n])

    q, k, v, do = (part(x) for x in (inputs.q, inputs.k, inputs.v, inputs.do))
    cut_inputs = Inputs(q, k, v, do, with_masks(inputs.mask, cut))
    return Twin(case.with_(M=n, N=n), cut_inputs, dict.fromkeys(("out", "lse", "dq"), same), part=part)


@_relation("each key and value head repeated")
def _(case: Case, inputs: Inputs) -> Twin | None:
    """Grouped-query attention is attention with heads repeated; their gradients are sums over the group."""
    if case.H == case.HK:
        return None
    group = case.H // case.HK
    k, v = (x.repeat_interleave(group, 1) for x in (inputs.k, inputs.v))
    return Twin(case.with_(HK=case.H), replace(inputs, k=k, v=v), dict.fromkeys(("out", "lse", "dq"), same))


def _gradients_alone(*names: str) -> Relation:
    def relation(case: Case, inputs: Inputs) -> Twin | None:
        return Twin(case, inputs, dict.fromkeys(("out", *names), same), gradients=names) if case.backward else None

    return relation


@_relation("another call between forward and backward")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not case.backward or not _plain(case):
        return None
    q, k = (with_values(x, lambda y: 0.5 - y) for x in (inputs.q, inputs.k))
    other = replace(inputs, q=q, k=k)  # and other options (`Implementation`)
    return Twin(case, inputs, dict.fromkeys(GRADIENTS, same), bits=frozenset({"dv"}), between=other)


@_relation("a second backward over the same graph")
def _(case: Case, inputs: Inputs) -> Twin | None:
    """What the forward saved is still there after the first."""
    if not case.backward:
        return None
    return Twin(case, inputs, dict.fromkeys(GRADIENTS, same), bits=frozenset({"dv"}), twice=True)


@_relation("a gradient through the LSE")
def _(case: Case, inputs: Inputs) -> Twin | None:
    if not case.backward:
        return None
    values = Draws(case.seed, "dlse").normal(case.B, case.H, case.M)
    dlse = torch.from_numpy(values.astype("float32")).to(inputs.q.device)
    return Twin(case, inputs, dict.fromkeys(GRADIENTS, same), dlse=dlse)


@_relation("without the log-sum-exp")
def _(case: Case, inputs: Inputs) -> Twin | None:
    """As nearly every caller calls it: many functions return from another branch, or launch another kernel."""
    return Twin(case, inputs, dict.fromkeys(("out", *GRADIENTS), same), lse=False)


@_relation("without gradients and log-sum-exp")
def _(case: Case, inputs: Inputs) -> Twin | None:
    return Twin(case.with_(backward=False), inputs, {"out": same}, lse=False) if case.backward else None


for _names in (*combinations(GRADIENTS, 1), *combinations(GRADIENTS, 2)):
    RELATIONS[f"{' and '.join(_names)} alone asked for"] = _gradients_alone(*_names)
