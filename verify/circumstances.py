"""What a record says of how it was made: the command, versions, the machine, its GPU, the state of the repository."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ..reports.record import Git


def command_line(arguments: list[str] | None = None) -> str:
    """The command as typed."""
    return shlex.join(["flashproof", *(sys.argv[1:] if arguments is None else arguments)])


def versions(*names: str) -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in names:
        with suppress(Exception):  # one that is not installed has none
            found[name] = version(name)
    return found


def machine() -> dict[str, str | int]:
    """Its processor, cores and system."""
    return {"cpu": _cpu(), "cores": os.cpu_count() or 1, "platform": platform.platform()}


def gpu() -> dict[str, str]:
    """Name, driver and CUDA version of torch's current CUDA device."""
    import torch

    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = _said(*asked).split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    return {"gpu": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}


def git() -> Git | None:
    """The commit that the working directory is at; None outside a repository."""
    try:
        return Git(commit=_said("git", "rev-parse", "HEAD"), dirty=bool(_said("git", "status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
