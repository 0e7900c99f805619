"""How other projects would judge a kernel: their inputs, their reference and their acceptance rule, as data.

`accepts(PEERS["FlashAttention 2"], implementation)` runs the kernel as that project's own test would and says whether
it would have passed.  Nothing in flashproof's verdict depends on it: it is for comparing test suites, not kernels.
"""

from .catalogue import PEERS
from .judging import Decision, accepts
from .peer import Peer, Problem

__all__ = ["PEERS", "Decision", "Peer", "Problem", "accepts"]
