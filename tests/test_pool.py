"""Worker processes: whose fault it is when one of them can do no more."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from flashproof.kernels.interpreter import installed, interpret
from flashproof.verify import pool as pools
from flashproof.verify.case import Case
from flashproof.verify.pool import Pool
from flashproof.verify.probe import has_gradients
from flashproof.verify.problems import FlashproofError, LostError
from flashproof.verify.silicon import distances_of
from flashproof.verify.worker import prepare
from pebble import ProcessFuture
from pebble.pool.base_pool import PoolStatus

PLAIN = Case(B=1, H=1, HK=1, M=8, N=8, D=16, dtype="fp16", regime="normal", seed=0, backward=False)

# What an illegal access does to a CUDA context, without a GPU: every later call to the device fails, in this process.
_BREAKS = """
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if {when}:
        def synchronize():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, synchronize
        synchronize()
    return sdpa(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
"""


@pytest.fixture
def pool_of(tmp_path) -> Iterator:
    started = []

    def start(when: str, workers: int) -> Pool:
        (tmp_path / "kernel.py").write_text(_BREAKS.format(when=when))
        started.append(Pool(f"{tmp_path / 'kernel.py'}:attention", "cpu", workers, 60.0))
        return started[-1]

    yield start
    for pool in started:
        pool.stop()


def test_workers_are_copies_of_a_process_that_hears_no_ctrl_c():
    script = """
from multiprocessing import forkserver
from flashproof.verify import processes
processes.begin()
print(*(line.split()[1] for line in open(f"/proc/{forkserver._forkserver._forkserver_pid}/status") if "SigBlk" in line))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout, 16) >> (signal.SIGINT - 1) & 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_cuda_context_costs_one_case(pool_of, workers):
    """The cases that its worker had before it are done, in order, by others."""
    cases = [PLAIN.with_(seed=n, M=9 if n == 3 else 8) for n in range(8)]
    results = list(pool_of("query.shape[2] == 9", workers).evaluate(cases, "survey", stores=False))
    assert [r.case for r in results] == cases
    assert [r.status for r in results] == ["ok"] * 3 + ["crashed"] + ["ok"] * 4
    found = "it broke the CUDA context: CUDA error: an illegal memory access was encountered"
    assert results[3].rows[0].message == found


def test_a_call_goes_to_a_worker_that_lives(pool_of):
    """Functions of the package: a worker cannot import a test module."""
    pool = pool_of("query.shape[2] == 9", 1)
    assert pool.one(PLAIN.with_(M=9), "survey", stores=False).status == "crashed"
    assert pool.call(has_gradients) is True
    assert pool.one(PLAIN.with_(M=9), "survey", stores=False).status == "crashed"
    arguments = [PLAIN.with_(seed=n) for n in range(3)]
    answers = list(pool.calls(distances_of, arguments))
    assert [case for case, _ in answers] == arguments
    assert {apart.tensor for _, found in answers for apart in found} == {"out"}


_DEAD = """

def dead():
    raise RuntimeError("CUDA error: unspecified launch failure")


torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, dead
"""


def test_a_device_that_answers_nobody_ends_the_run(tmp_path, monkeypatch):
    """Every worker finds the device dead before its first task."""
    monkeypatch.setattr(pools, "_RESTARTS", 2)
    (tmp_path / "dead.py").write_text(_BREAKS.format(when="False") + _DEAD)
    pool = Pool(f"{tmp_path / 'dead.py'}:attention", "cpu", 1, 60.0)
    try:
        with pytest.raises(FlashproofError, match="answers no process"):
            list(pool.evaluate([PLAIN], "survey", stores=False))
    finally:
        pool.stop()


def test_a_context_broken_by_a_second_call(pool_of):
    """The first call was judged, and what was found stands; the process is known to be lost."""
    second = "len(globals().setdefault('calls', [])) == 1 or calls.append(1)"
    result = pool_of(second, 1).one(PLAIN, "survey", stores=False)
    assert result.lost
    assert {row.status for row in result.rows} == {"ok", "crashed"}
    assert {"repeat", "returns"} <= {check.name for check in result.failed}


# A kernel that takes a second for each row of its query beyond 8: what runs while something else happens to the pool.
_SLOW = _BREAKS.replace("import torch\n", "import time\n\nimport torch\n").format(when="time.sleep(query.shape[2] - 8)")


def test_whoever_waits_learns_that_the_pool_was_stopped(tmp_path):
    (tmp_path / "slow.py").write_text(_SLOW)
    pool = Pool(f"{tmp_path / 'slow.py'}:attention", "cpu", 1, 60.0)
    assert pool.one(PLAIN, "survey", stores=False).status == "ok"
    with ThreadPoolExecutor(2) as threads:
        running, queued = (threads.submit(pool.one, PLAIN.with_(M=30), "survey", stores=False) for _ in range(2))
        assert wait([running, queued], timeout=0.5).not_done == {running, queued}
        pool.stop()
        for each in (running, queued):
            with pytest.raises(LostError, match="stopped"):
                each.result(timeout=30)


@pytest.mark.parametrize("broken", [True, False])
def test_a_task_that_the_pool_forgets_is_done_by_the_next(pool_of, monkeypatch, broken):
    """As happens to one that is handed to it at the moment when it breaks, or whose worker dies while it reads it."""
    monkeypatch.setattr(pools, "_SILENCE", -59.5)  # beyond the limit of 60 seconds
    theirs = pool_of("False", 1)
    first = theirs._pool

    def forgotten(*_, **__):
        if broken:
            first._context.status = PoolStatus.ERROR
        return ProcessFuture()

    monkeypatch.setattr(first, "schedule", forgotten)
    monkeypatch.setattr(theirs, "_started", lambda start=theirs._started: monkeypatch.undo() or start())
    assert [r.status for r in theirs.evaluate([PLAIN, PLAIN.with_(seed=1)], "survey", stores=False)] == ["ok"] * 2
    assert theirs._pool is not first
    assert theirs.call(has_gradients) is True


def test_on_a_device_nothing_is_interpreted():
    with interpret():
        prepare("eager", "cuda")
        assert not installed()
        prepare("eager", "cpu")
        assert installed()
