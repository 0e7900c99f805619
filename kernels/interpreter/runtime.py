"""Make `kernel[grid](...)` run on the CPU: a Triton driver for a machine without a GPU.

Triton's own machinery does all of its usual work (binding arguments, specialising, autotuning, caching); only the two
ends are ours.  The driver says what device there is, and instead of compiling TTIR to machine code we prepare it as a
`Program`.  The target is compute capability 8.9: the newest one for which Triton lowers tensor descriptors to plain
loads and stores, and one that has every fp8 format.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton import knobs
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler.errors import CompilationError
from triton.language.standard import cdiv
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.cache import get_cache_manager
from triton.runtime.driver import driver as active_driver
from triton.runtime.jit import JITFunction

from . import device
from .descriptors import with_assertions
from .errors import UnsupportedOperationError
from .language.facts import atomics_order, widens, written_arguments
from .language.ttir import Function, parse
from .numbers.arithmetic import Arithmetic
from .program import Program, argument
from .session import current
from .target import PROPERTIES, TARGET
from .torch_compile import keep_out, let_in

_PROGRAMS_KEPT = 8  # arithmetics that a kernel stays prepared for
_CACHED = "interpreted.ttir"
_TEXT = 1  # raise it when what `_generate` makes of a kernel changes
_ASKED_FOR = "TRITON_INTERPRET"
_LAUNCHERS = (JITFunction, Autotuner, Heuristics)


class CpuDriver(DriverBase):  # type: ignore[misc]  # triton is untyped
    """Stands where the CUDA driver would: enough of it for Triton's launcher and autotuner."""

    def __init__(self) -> None:
        self.utils = SimpleNamespace(get_device_properties=lambda _device: PROPERTIES)

    @classmethod
    def is_active(cls) -> bool:
        return False

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_device(self) -> int:
        return -1  # no GPU's number: Triton keeps what it has compiled by device, and must not launch that on ours

    def set_current_device(self, _device: int) -> None:
        return

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_device_capability(self, _device: int = 0) -> tuple[int, int]:
        major, minor = divmod(int(TARGET.arch), 10)
        return major, minor

    def get_benchmarker(self) -> Any:
        """Nothing is timed here: every configuration ties, so the autotuner takes its first."""
        return lambda _kernel_call, quantiles=(), **_: [0.0] * max(1, len(quantiles))


class InterpretedKernel:
    """What Triton's launcher holds in place of a compiled kernel."""

    function = None
    packed_metadata = None
    metadata = SimpleNamespace(num_warps=4, num_ctas=1, shared=0, name="interpreted")
    n_regs = n_spills = 0

    def __init__(self, function: Function, names: Sequence[str], constants: set[str]) -> None:
        self.ttir = function
        self._written, self._ordered = written_arguments(function), atomics_order(function)
        self._runtime = [(i, name) for i, name in enumerate(names) if name not in constants]
        self._programs: dict[Arithmetic, Program] = {}

    def _program(self, arithmetic: Arithmetic) -> Program:
        if arithmetic not in self._programs:
            while len(self._programs) >= _PROGRAMS_KEPT:
                self._programs.pop(next(iter(self._programs)))
            self._programs[arithmetic] = Program(self.ttir, arithmetic)
        return self._programs[arithmetic]

    def launch_metadata(self, _grid: Any, _stream: int, *_args: Any) -> None:
        return

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *args, **_: self._launch(grid, args)

    def run(self, x: int, y: int, z: int, *rest: Any) -> None:
        """Triton's launcher: stream, function, metadata twice, two hooks, then the kernel's arguments."""
        self._launch((x, y, z), rest[6:])

    def _launch(self, grid: tuple[int, int, int], args: Sequence[Any]) -> None:
        elements = [type_.element for _, type_ in self.ttir.arguments]
        named: list[tuple[str, Any]] = []
        for i, name in self._runtime:
            named += [(name, leaf) for leaf in _leaves(args[i], elements[len(named) :])]
        values = [_tensor(v) if _tensor(v) is not None else v for _, v in named]
        session, grid = current(), (int(grid[0]), int(grid[1]), int(grid[2]))
        tensors = [(n, v) for (n, _), v in zip(named, values, strict=True) if isinstance(v, torch.Tensor)]
        for name, tensor in tensors:
            if tensor.device.type != "cpu":
                raise UnsupportedOperationError(f"{name} is on {tensor.device}, and interpreted kernels run on the CPU")
        written = [v for i, v in enumerate(values) if i in self._written and isinstance(v, torch.Tensor)]
        memory = session.memory(tensors, grid, written, ordered=self._ordered)
        arrays = [
            argument(memory.address(v) if isinstance(v, torch.Tensor) else v, type_, session.arithmetic)
            for v, (_, type_) in zip(values, self.ttir.arguments, strict=True)
        ]
        session.launched.add(self.ttir)
        self._program(session.arithmetic).run(grid, arrays, memory)


def _tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    base = getattr(value, "base", None)  # triton.reinterpret(tensor, dtype)
    return base if isinstance(base, torch.Tensor) else None


def _leaves(value: Any, elements: Sequence[str]) -> Iterator[Any]:
    """A launch argument as the scalars and tensors that TTIR sees, whose next arguments have types `elements`.

    Tuples are flattened; a tensor descriptor made on the host is its base, shape, strides, flags (one more in every
    other version of Triton), then shape and strides once more.
    """
    if isinstance(value, tuple):
        for item in value:
            taken = list(_leaves(item, elements))
            elements = elements[len(taken) :]
            yield from taken
    elif hasattr(value, "block_shape") and hasattr(value, "strides"):
        flags = [getattr(value, "padding", "zero") == "nan", getattr(value, "round_f32_to_tf32", False)]
        behind = elements[1 + 2 * len(value.shape) :]
        yield from (value.base, *value.shape, *value.strides)
        yield from flags[: next((i for i, e in enumerate(behind) if e != "i1"), 0)]
        yield from (*value.shape, *value.strides)
    elif value is not None:
        yield value


class _Installed:
    """What `install` puts in place, and what it replaced."""

    def __init__(self) -> None:
        self.kernels: dict[str, InterpretedKernel] = {}
        self.specialised: set[Any] = set()  # kernels whose source needs an argument of 1 to be a constant
        self.original = JITFunction._do_compile

    def prepare(
        self, jit: Any, key: Any, signature: dict[str, Any], device: int, constexprs: dict[Any, Any], options: Any,
        attrs: dict[Any, Any], warmup: bool,
    ) -> InterpretedKernel:  # fmt: skip
        """Stands in for `JITFunction._do_compile`: same arguments, same caching, no machine code."""
        del warmup, attrs  # attributes (divisibility, alignment) only help machine code
        kernel_cache, _, target, backend, _ = jit.device_caches[device]
        general = _unspecialised(jit, signature, constexprs)
        if general != (signature, constexprs) and jit not in self.specialised:
            try:
                kernel = self._kernel(jit, *general, target, backend, options)
            except CompilationError:  # it needs an argument of 1 to be a constant
                self.specialised.add(jit)
            else:
                if widens(kernel.ttir):  # int8 + 1 is int8, int8 + an int32 that is 1 is int32
                    self.specialised.add(jit)
                else:
                    kernel_cache[key] = kernel
        if key not in kernel_cache:
            kernel_cache[key] = self._kernel(jit, signature, constexprs, target, backend, options)
        prepared: InterpretedKernel = kernel_cache[key]
        return prepared

    def _kernel(
        self, jit: Any, signature: dict[str, Any], constexprs: dict[Any, Any], target: GPUTarget, backend: Any,
        options: Any,
    ) -> InterpretedKernel:  # fmt: skip
        source = jit.ASTSource(jit, signature, constexprs, {})
        # the same text in another file is another kernel: its source lines are elsewhere
        identity = f"{source.hash()}-{options.hash()}-{jit.fn.__code__.co_filename}"
        if identity not in self.kernels:
            function = front_end(source, target, backend, options, identity)
            constants = {name for name, kind in signature.items() if kind == "constexpr"}
            self.kernels[identity] = InterpretedKernel(function, list(signature), constants)
        return self.kernels[identity]


def _unspecialised(
    jit: Any, signature: dict[str, Any], constexprs: dict[Any, Any]
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Signature and constants with integers that are constants only because they are 1 as arguments again.

    To machine code a stride of 1 is worth a translation of its own.  Here that would be the dearest part of a launch: a
    kernel of twenty strides has half a dozen such translations, all of which compute the same.
    """
    ones = {
        (i,): p.name for i, p in enumerate(jit.params)
        if signature[p.name] == "constexpr" and not p.is_constexpr and type(constexprs.get((i,))) is int
    }  # fmt: skip
    kinds = signature | dict.fromkeys(ones.values(), "i32")
    return kinds, {path: value for path, value in constexprs.items() if path not in ones}


def front_end(source: Any, target: GPUTarget, backend: Any, options: Any, identity: str) -> Function:
    """Kernel source -> TTIR, by Triton's own front end and target-independent passes; returns the parsed function.

    The text is kept in Triton's cache folder under `identity`, so that a kernel is translated once per machine.
    """
    cache = get_cache_manager(hashlib.sha256(f"{_TEXT}-{triton.__version__}-{identity}".encode()).hexdigest())
    cached = cache.get_file(_CACHED)
    if cached is not None:
        text = Path(cached).read_text()
    else:
        text = _generate(source, target, backend, options)
        cache.put(text, _CACHED, binary=False)
    functions = parse(text)
    return functions.get(source.name) or next(iter(functions.values()))


def _generate(source: Any, target: GPUTarget, backend: Any, options: Any) -> str:
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    module = with_assertions(module, context)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    module = stages["ttir"](module, {})
    return str(module)


_installed: _Installed | None = None


def installed() -> bool:
    """Whether Triton launches are interpreted in this process."""
    return _installed is not None


def install() -> None:
    """Interpret every Triton launch in this process from now on.  Call it before the kernels' first launch.

    Raises:
        RuntimeError: Triton was imported under TRITON_INTERPRET=1, so that its own interpreter is in the way.
    """
    global _installed
    if _installed is not None:
        return
    if not isinstance(cdiv, JITFunction):
        raise RuntimeError("triton was imported with TRITON_INTERPRET=1 set; unset it: kernels are interpreted anyway")
    environment = os.environ.get(_ASKED_FOR)
    knobs.runtime.interpret = False  # a module that sets TRITON_INTERPRET would decorate its kernels for the other one
    if environment is None:  # the knob also writes the variable, which child processes would see
        os.environ.pop(_ASKED_FOR, None)
    else:
        os.environ[_ASKED_FOR] = environment
    state = _Installed()
    active_driver.set_active(CpuDriver())
    device.answer()
    JITFunction._do_compile = lambda jit, *args: state.prepare(jit, *args)
    for launcher in _LAUNCHERS:
        keep_out(launcher.run)
    _installed = state


def uninstall() -> None:
    """Undo `install`."""
    global _installed
    if _installed is None:
        return
    JITFunction._do_compile = _installed.original
    for launcher in _LAUNCHERS:
        let_in(launcher.run)
    del knobs.runtime.interpret
    active_driver._active = None
    device.restore()
    _installed = None
