"""The bundled Triton flash attention, and the interpreter that runs Triton kernels without a GPU."""
