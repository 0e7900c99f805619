"""How the values of q, k, v and dO are drawn.  Each regime aims at one mechanism by which attention kernels fail.

A regime is a function of a case that returns float64 arrays of the full shapes; rounding to the dtype comes later.
`independent` regimes draw elements independently: their roundings are incoherent, so ratios and biases over many cases
mean something.  The others are built to make roundings conspire; they are judged by bounds alone.

Each module registers its own: `independent`, `logits` (what the softmax sees), `values` (what V, dO and the dtype's
range do), `edges` (which keys a query may see).
"""

from . import independent  # noqa: I001  (their order is that of REGIMES: a failing case shrinks to the first, `normal`)
from . import logits, values, edges
from .common import REGIMES, Regime, Values

__all__ = ["REGIMES", "Regime", "Values", "edges", "independent", "logits", "values"]
