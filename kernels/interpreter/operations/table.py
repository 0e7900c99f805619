"""What each straight-line TTIR operation does to arrays.

Every value is an array with a leading axis of program instances: shape `(L, *tile)`, where any extent may be 1 and then
stands for all (numpy's broadcasting does the rest, so `tt.splat` and `tt.broadcast` cost nothing).

The table maps an operation's name to a *maker*: `maker(op, context)` returns the function that runs it, called with the
operands' arrays.  What is not in the table is refused by name when the kernel is prepared.
"""

from .access import ACCESS
from .context import Maker
from .elementwise import ELEMENTWISE
from .libdevice import LIBDEVICE
from .ptx import ASSEMBLY
from .tiles import TILES

OPS: dict[str, Maker] = {**ELEMENTWISE, **LIBDEVICE, **ASSEMBLY, **TILES, **ACCESS}
