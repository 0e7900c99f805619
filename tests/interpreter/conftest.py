"""Every test of this folder runs with the interpreter installed."""

import pytest


@pytest.fixture(autouse=True)
def _interpreted(interpreted):
    pass
