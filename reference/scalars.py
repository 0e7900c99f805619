"""Scalars of a device, waited for once: each answer asked for by itself costs a GPU's whole queue."""

import torch
from torch import Tensor


def at_once(*scalars: Tensor) -> list[float]:
    """The values of tensors of one element each, of any dtypes; integers are exact up to 2^53."""
    return torch.stack([x.double() for x in scalars]).tolist() if scalars else []


def all_finite(*tensors: Tensor) -> bool:
    """Whether no element of any tensor is NaN or infinite."""
    extremes = [e for x in tensors if x.numel() for e in torch.aminmax(x.detach())]  # NaN where any element is
    return not extremes or float((0 * torch.stack(extremes)).sum()) == 0.0
