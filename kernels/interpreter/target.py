"""The GPU that interpreted kernels are translated for."""

from triton.backends.compiler import GPUTarget

#: compute capability 8.9: the newest one for which Triton lowers tensor descriptors to plain loads and stores, and one
#: that has every fp8 format
TARGET = GPUTarget("cuda", 89, 32)
#: the rest of what Triton's launcher, autotuner and libraries ask of a device: an RTX 4090's answers
PROPERTIES = {
    "max_shared_mem": 101376, "max_num_regs": 65536, "multiprocessor_count": 128, "warpSize": 32,
    "sm_clock_rate": 2520000, "mem_clock_rate": 10501000, "mem_bus_width": 384,
}  # fmt: skip
