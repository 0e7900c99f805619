"""The standalone script of a finding: inputs as bytes, the definition of attention in float64, and one comparison.

It needs the implementation, torch and numpy; nothing of ours.
"""

from __future__ import annotations

import base64
import zlib
from importlib.resources import files
from pathlib import Path

import jinja2
import torch
from torch import Tensor

from ..reports.record import Finding
from .case import Case
from .evaluate import inputs_for
from .expected import reference
from .implementation import Implementation
from .storage import is_wide, storage_of


def script_of(
    finding: Finding, case: Case, implementation: Implementation, *, stores_scores: bool, device: str
) -> str:  # fmt: skip
    """The script's text, for the device where it was found; the function itself is not called, for it may hang."""
    inputs = inputs_for(case, implementation, "cpu")
    options = implementation.arguments(case, inputs)
    visible, bias = inputs.mask.rows(0, case.M, case.M, case.N, torch.device("cpu"))
    known = reference(case, inputs, stores_scores=stores_scores)
    bound, envelope = known.bound.get(finding.tensor or ""), known.envelope.get(finding.tensor or "")
    template = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    ).from_string(files(__package__).joinpath("script.py.j2").read_text())
    return template.render(
        finding=finding, case=case, device=device, load=_load_code(implementation),
        flash_attn=implementation.signature == "flash_attn",
        needs_gradients=case.backward and finding.check != "inference",
        tensors={n: _literal(getattr(inputs, n)) for n in ("q", "k", "v", "do")},
        options={k: _literal(v) if isinstance(v, Tensor) else repr(v) for k, v in options.items()},
        visible=_literal(visible.expand(case.B, case.H, case.M, case.N).contiguous()),
        bias=None if bias is None else _literal(bias.expand(case.B, case.H, case.M, case.N).contiguous()),
        bound=None if bound is None else _literal(bound), allowed_rms=(envelope or 0.0) * finding.allowed,
        scale=case.softmax_scale,
        direction=_literal(known.direction[finding.tensor or ""]) if finding.check == "systematic" else None,
    )  # fmt: skip


def _literal(x: Tensor) -> str:
    """Code that rebuilds a tensor with its storage (gaps included), strides and offset; of a wide one its elements."""
    if is_wide(x):
        empty = f"torch.empty_strided({tuple(x.shape)}, {x.stride()}, dtype={x.dtype}, device=DEVICE)"
        return f"{empty}.copy_({_literal(x.contiguous())})"
    storage = storage_of(x, torch.uint8).numpy().tobytes()
    text = base64.b85encode(zlib.compress(storage, 9)).decode()
    dtype = str(x.dtype)
    return f"tensor({text!r}, {dtype}, {tuple(x.shape)}, {x.stride()}, {x.storage_offset()})"


_SDPA = """\
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention(*args, **kwargs):
    with sdpa_kernel([SDPBackend.{backend}]):
        return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)
"""
_BACKENDS = {"sdpa-math": "MATH", "sdpa-flash": "FLASH_ATTENTION", "sdpa-efficient": "EFFICIENT_ATTENTION",
             "sdpa-cudnn": "CUDNN_ATTENTION"}  # fmt: skip


def _load_code(implementation: Implementation) -> str:
    name = implementation.name
    if name in _BACKENDS:
        return _SDPA.format(backend=_BACKENDS[name])
    target, colon, attribute = name.rpartition(":")
    if not colon or target in ("mutant", "variant"):
        return (
            f"from flashproof.verify.loading import load  # a built-in of it\n\nattention = load({name!r}).function\n"
        )
    if target.endswith(".py"):
        path = Path(target).resolve()
        return (
            f"sys.path.insert(0, {str(path.parent)!r})\n"
            f"spec = importlib.util.spec_from_file_location({path.stem!r}, {str(path)!r})\n"
            "module = importlib.util.module_from_spec(spec)\n"
            f"sys.modules[{path.stem!r}] = module\n"
            f"spec.loader.exec_module(module)\nattention = module.{attribute}\n"
        )
    return f"import {target}\n\nattention = {target}.{attribute}\n"
