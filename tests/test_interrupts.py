"""Ctrl-C: at once, or where it can do no harm."""

from collections.abc import Iterator
from threading import Thread

import pytest
from flashproof.verify import interrupts


@pytest.fixture(autouse=True)
def unheard() -> Iterator[None]:
    yield
    assert (interrupts._deferrals, interrupts._heard) == (0, False)


def test_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupts._interrupt()
    interrupts.check()


def test_deferred_it_is_raised_by_every_check() -> None:
    with interrupts.deferred():
        with interrupts.deferred():
            interrupts.check()
            interrupts._interrupt()
            interrupts._interrupt()
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                interrupts.check()
    interrupts.check()


def test_too_late() -> None:
    with interrupts.deferred():
        interrupts._interrupt()
    with interrupts.deferred():
        interrupts.check()


def test_only_the_main_thread_raises_it() -> None:
    raised = []

    def check() -> None:
        try:
            interrupts.check()
        except KeyboardInterrupt:
            raised.append(True)

    with interrupts.deferred():
        interrupts._interrupt()
        thread = Thread(target=check)
        thread.start()
        thread.join()
    assert not raised
