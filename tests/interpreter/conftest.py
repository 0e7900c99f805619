"""Every test of this folder runs with the interpreter installed."""

import pytest
from flashproof.kernels import interpreter


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreter.interpret():
        yield
