"""The float64 truth against certified balls over every regime, and that a crooked yardstick would be noticed."""

from __future__ import annotations

from flashproof.reference import attention
from flashproof.verify import yardstick
from flashproof.verify.regimes import REGIMES


def test_float64_is_straight_on_every_regime():
    rows = yardstick.yardstick(seed=1, bits=192)
    assert {r.regime for r in rows} == set(REGIMES)
    assert max(r.max_logit for r in rows) > 1e3
    for r in rows:
        assert r.straight, f"{r.regime} {r.dtype}: {r.distance}"


def test_a_crooked_truth_is_noticed(monkeypatch):
    """Part per billion on dK: far below any half-precision error, far above float64's own."""
    sound = attention.backward

    def crooked(*arguments):
        g = sound(*arguments)
        return attention.Gradients(g.dq, g.dk * (1 + 1e-9), g.dv)

    monkeypatch.setattr(yardstick.attention, "backward", crooked)
    rows = yardstick.yardstick(seed=1, bits=192)
    bad = [r for r in rows if not r.straight]
    assert len(bad) > len(rows) / 2
    assert all(r.distance["dk"] > yardstick.LIMIT and r.distance["dq"] < yardstick.LIMIT for r in bad)


def test_radii_shrink_with_the_precision(monkeypatch):
    monkeypatch.setattr(yardstick, "REGIMES", {"normal": REGIMES["normal"]})
    coarse, fine = (yardstick.yardstick(seed=0, bits=bits)[0].radius for bits in (96, 160))
    assert fine < coarse < 1e-20
