"""flashproof: correctness and numerical-stability verification for attention kernels."""

__version__ = "0.1.0"
