"""What a record says of an exception: its kind, and what went wrong, in one line."""

from __future__ import annotations

from flashproof.verify.outputs import RefusedError, describe


def test_a_short_text_is_told_whole_in_one_line():
    assert describe(ValueError("a head dimension\n  of 3")) == "ValueError: a head dimension of 3"
    assert describe(ValueError()) == "ValueError"
    assert describe(RefusedError("ValueError: too wide")) == "ValueError: too wide"


def test_of_a_quoted_traceback_the_error_at_its_end_is_told():
    frames = "\n".join(f'  File "/a/long/path/compiler.py", line {n}, in step\n    step({n})' for n in range(100))
    notes = "Set SOME_VARIABLE=1 for more. " * 20
    text = f"job kernel_0 failed:\nTraceback (most recent call last):\n{frames}\n"
    told = describe(
        RuntimeError(f"{text}ValueError: an earlier one\n{frames}\ntriton.OutOfResources: shared memory\n\n{notes}")
    )
    assert told.startswith("RuntimeError: job kernel_0 failed: Traceback")
    assert told.endswith(" ... triton.OutOfResources: shared memory")
    assert len(told) < 330
    assert "\n" not in told


def test_a_long_text_without_one_is_cut():
    assert describe(ValueError("x" * 1000)) == f"ValueError: {'x' * 300}"
