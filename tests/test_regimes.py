"""Every regime reaches its mechanism: shown in float64 on the tensors as built, rounded to the dtype."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from flashproof.reference import attention as truth_of
from flashproof.reference.analysis import analyse
from flashproof.reference.arrangements import ANY, FLASH, STANDARD
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.evaluate import evaluate
from flashproof.verify.inputs import DTYPES, build
from flashproof.verify.loading import load
from flashproof.verify.regimes import REGIMES

BASE = Case(B=1, H=2, HK=1, M=40, N=130, D=32, dtype="fp16", regime="normal", seed=5)
HALF = ("fp16", "bf16")
SEEDS = range(12)


def each(regime, **changes):
    """Cases of a regime in both half dtypes, of several seeds."""
    return [BASE.with_(regime=regime, dtype=dtype, seed=seed, **changes) for dtype in HALF for seed in SEEDS]


def logits(case):
    x = build(case)
    return case.softmax_scale * x.q.double() @ x.k.double().repeat_interleave(case.H // case.HK, 1).mT


def visible(case):
    shown = build(case).mask.rows(0, case.M, case.M, case.N, torch.device("cpu"))[0]
    return shown.expand(case.B, case.H, case.M, case.N)


def above(case):
    """How far each logit lies below its row's maximum, in base 2."""
    s = logits(case)
    return (s.amax(-1, keepdim=True) - s) / math.log(2)


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_give_finite_inputs_of_the_case_s_shapes(regime, dtype):
    for case in (
        BASE.with_(regime=regime, dtype=dtype),
        BASE.with_(regime=regime, dtype=dtype, M=1, N=0, D=1, scale=0.0),
        BASE.with_(regime=regime, dtype=dtype, M=0, N=1, D=2, scale=-0.2),
        BASE.with_(regime=regime, dtype=dtype, B=2, H=6, HK=3, M=3, N=2, D=1),
    ):
        x = build(case)
        for name, length, heads in (
            ("q", case.M, case.H),
            ("k", case.N, case.HK),
            ("v", case.N, case.HK),
            ("do", case.M, case.H),
        ):
            t = getattr(x, name)
            assert tuple(t.shape) == (case.B, heads, length, case.D)
            assert t.dtype == DTYPES[dtype]
            assert torch.isfinite(t).all()


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_are_named_and_tested(regime):
    assert len(REGIMES[regime].purpose) > 20
    own = regime.replace("-", "_")
    assert any(own in name for name in globals() if name.startswith("test_")), f"nothing shows what {regime} provokes"


def test_a_failing_case_shrinks_to_normal():
    assert next(iter(REGIMES)) == "normal"
    assert {n for n, r in REGIMES.items() if r.independent} == {"normal", "uniform", "outlier", "large-logits"}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("regime", REGIMES)
def test_the_bound_stays_finite_almost_everywhere(regime, dtype):
    """Else anything would pass."""
    case = BASE.with_(regime=regime, dtype=dtype)
    x, scale = build(case), case.softmax_scale
    forward = truth_of.forward(x.q, x.k, x.v, x.mask, scale)
    backward = truth_of.backward(x.q, x.k, x.v, x.do, x.mask, scale)
    bound = analyse(x.q, x.k, x.v, x.do, x.mask, scale, forward, backward, ANY, (FLASH, STANDARD))[0]
    far = regime in ("extreme-logits", "negative-logits")  # exp(S - L) may be anything, averages of V may not
    for name in ("out", "lse") if far else ("out", "lse", "dq", "dk", "dv"):
        finite = torch.isfinite(getattr(bound, name)).double().mean()
        assert finite > 0.99, (name, float(finite))


# -- independent -------------------------------------------------------------------------------------------------------


def test_normal_uniform_outlier_and_large_logits_are_what_they_are_called():
    normal, uniform, outlier = (build(BASE.with_(regime=r, B=3, D=64)) for r in ("normal", "uniform", "outlier"))
    assert abs(float(normal.v.double().std()) - 1) < 0.05 and normal.v.abs().max() < 6
    assert uniform.v.min() >= 0 and 0.45 < uniform.v.double().mean() < 0.55
    assert max(float(getattr(outlier, n).abs().max()) for n in ("q", "k", "v", "do")) > 8
    assert all(float(logits(c).std()) > 3.5 for c in each("large-logits"))


# -- logits ------------------------------------------------------------------------------------------------------------


def test_extreme_logits_are_large_and_near_ties():
    for case in each("extreme-logits"):
        s = logits(case)
        assert 9e2 < s.abs().max() < 7e4
        assert (s.softmax(-1).amax(-1) < 0.9).any(), "no near ties"


@pytest.mark.parametrize("scale", [None, -0.2])
def test_negative_logits_are_outweighed_by_a_score_of_0(scale):
    for case in each("negative-logits", scale=scale):
        s = logits(case)
        assert s.min() > -2.3e4 and s.max() < -15
        assert (build(case).v <= -2).all(), "an output near 0 must be wrong"
    assert any(float(logits(c).max()) < -1.2e4 for c in each("negative-logits")), "a mask of -1e4 is never the maximum"


def test_one_hot_rows_have_one_weight():
    weights = torch.cat([logits(c).softmax(-1).amax(-1).flatten() for c in each("one-hot")])
    assert (weights > 0.999).double().mean() > 0.9


def test_all_equal_logits_are_equal():
    for case in each("all-equal"):
        s = logits(case)
        assert torch.allclose(s, s[..., :1].expand_as(s), rtol=0, atol=1e-12)
        k = build(case).k
        assert torch.equal(k, k[:, :, :1].expand_as(k))


def test_plateau_rounds_every_weight_the_same_way():
    """exp(-gap), the weight next to the running maximum, lies near the middle between two numbers of the dtype."""
    for case in each("plateau"):
        s = logits(case)
        w = torch.exp(s - s.amax(-1, keepdim=True))
        assert (w[..., 0] == 1).all()
        rest = w[..., 1:]
        error = (rest.to(DTYPES[case.dtype]).double() - rest) / rest / case.unit_roundoff
        assert (error.sign() == error.flatten()[0].sign()).all() and error.abs().min() > 0.7  # 1: a half ulp at 1


def test_tied_maxima_are_tied_and_v_has_one_sign():
    for case in each("tied-maxima"):
        down = above(case)
        assert (down[..., [0, -1]] == 0).all() and (down[..., 1:-1] > 10).all()
        assert (build(case).v < 0).all()


def test_edge_maxima_stand_on_both_sides_of_tile_edges():
    tiles = set()
    for case in each("edge-maxima"):
        top = (above(case) == 0)[0, 0, 0].nonzero().flatten().tolist()
        tile = next(t for t in (16, 32, 64, 128) if t in top)
        tiles.add(tile)
        assert {tile - 1, tile, case.N - 1} <= set(top) and len(top) <= case.N // 4
        assert (above(case)[..., 1] > 5).all() and (build(case).v < 0).all()
    assert len(tiles) >= 3


def test_increasing_and_decreasing_put_the_maximum_last_and_first():
    for case in each("increasing"):
        s = logits(case)
        assert (s.argmax(-1) > 2 * case.N // 3).double().mean() > 0.9
        tiles = s[..., :128].unflatten(-1, (4, 32)).amax(-1)
        assert (tiles.diff(dim=-1) > 0).double().mean() > 0.75  # the maximum moves at nearly every tile
    for case in each("decreasing"):
        assert (logits(case).argmax(-1) < case.N // 3).double().mean() > 0.9
    assert any(float(above(c)[..., -1].min()) > 126 for c in each("decreasing")), "late tiles never underflow"


def test_drift_climbs_by_at_most_8_per_tile_and_by_more_in_all():
    rises = []
    for case in each("drift"):
        s = logits(case)[0, 0, 0] / math.log(2)
        stair = next((t for t in (16, 32, 64, 128) if s[t] != s[t - 1]), None)
        assert stair is not None
        steps = s[: 128 // stair * stair].unflatten(0, (-1, stair)).amax(-1).diff()
        assert (steps > 1).all() and (steps < 8.001).all()
        rises.append(float(s[-1] - s[0]))
    assert sum(r > 8.5 for r in rises) > len(rises) // 3


def test_late_spike_lies_in_the_last_tile():
    for case in each("late-spike"):
        s = logits(case)
        where = s.mean(2).argmax(-1)
        assert (where >= (case.N - 1) // 128 * 128).all()
    short = [int(logits(c).mean(2).argmax(-1)[0, 0]) for c in each("late-spike", N=100)]
    assert sum(x >= 96 for x in short) >= len(short) // 4  # the last 4 keys, of tiles of 16 and 32
    heights = [float(above(c)[..., :128].mean()) for c in each("late-spike")]
    assert min(heights) < 15 and max(heights) > 100


def test_sink_is_the_first_key_and_holds_no_value():
    shares = []
    for case in each("sink"):
        assert not build(case).v[:, :, 0].any() and build(case).v[:, :, 1:].any()
        shares.append(float(logits(case).softmax(-1)[..., 0].mean()))
    assert max(shares) > 0.95 and min(shares) > 0.2


@pytest.mark.parametrize("dtype", HALF)
def test_underflow_edge_straddles_every_edge(dtype):
    down = torch.cat([above(BASE.with_(regime="underflow-edge", dtype=dtype, seed=s)).flatten() for s in SEEDS])
    for edge in (14, 24, 25, 126, 149):
        assert ((down > edge - 0.6) & (down < edge - 0.1)).any(), edge
        assert ((down > edge + 0.1) & (down < edge + 0.6)).any(), edge
    for case in each("underflow-edge"):
        top = above(case) == 0
        assert top.sum(-1).eq(1).all()
        assert not build(case).v[:, :, top[0, 0, 0]].any(), "the largest weight hides the others"


def test_sparse_mass_has_a_tail_that_counts_though_no_key_of_it_does():
    for N in (130, 1024):
        for case in each("sparse-mass", N=N, M=2):
            w = logits(case).softmax(-1)
            small = above(case) > 1
            assert small.double().mean() > 0.9
            assert w[small].max() < 3e-3 < 10 * (w * small).sum(-1).min()
            assert (w * small).sum(-1).min() > case.unit_roundoff


# -- values ------------------------------------------------------------------------------------------------------------


def test_ones_v_and_one_hot_v_read_out_the_weights():
    assert all((build(c).v == 1).all() for c in each("ones-v"))
    assert all((build(c).v.sum(-1) == 1).all() and build(c).v.amax() == 1 for c in each("one-hot-v"))


def test_one_signed_v_lets_nothing_average_out():
    for case in each("one-signed-v"):
        x = build(case)
        assert (x.v >= 1).all() and (x.do <= -1).all()
        assert logits(case).softmax(-1).amax() < 0.1  # and all keys count


def test_subnormal_values_are_subnormal():
    for case in each("subnormal"):
        v = build(case).v.abs()
        assert (v < torch.finfo(v.dtype).tiny).double().mean() > 0.9 and (v > 0).any()


def test_tiny_results_are_below_usual_tolerances():
    sizes = []
    for case in each("tiny"):
        x = build(case)
        out = truth_of.forward(x.q, x.k, x.v, x.mask, case.softmax_scale).o
        assert 0 < out.abs().max() < 1e-2
        sizes.append((float(x.v.double().abs().max()), float(x.do.double().abs().max())))
    assert min(v for v, _ in sizes) < 1e-5 and max(v for v, _ in sizes) > 1e-3
    assert min(d for _, d in sizes) < 1e-5 and max(d for _, d in sizes) > 1


def test_huge_values_come_near_the_largest_number_and_the_truth_does_not_overflow():
    which = set()
    for case in each("huge"):
        x = build(case)
        large = 2e4 if case.dtype == "fp16" else 2.0**109
        which.add("v" if x.v.abs().max() > large else "do")
        assert max(x.v.abs().max(), x.do.abs().max()) > large
        forward = truth_of.forward(x.q, x.k, x.v, x.mask, case.softmax_scale)
        back = truth_of.backward(x.q, x.k, x.v, x.do, x.mask, case.softmax_scale)
        for result in (forward.o, back.dq, back.dk, back.dv):
            assert torch.isfinite(result.to(DTYPES[case.dtype])).all()
    assert which == {"v", "do"}


def test_large_dp_is_beyond_fp16_and_the_gradients_are_not():
    for case in each("large-dp") + each("large-dp", D=1) + each("large-dp", D=256):
        x = build(case)
        dp = x.do.double() @ x.v.double().repeat_interleave(case.H // case.HK, 1).mT
        back = truth_of.backward(x.q, x.k, x.v, x.do, x.mask, case.softmax_scale)
        assert (dp > 65504).double().mean() > 0.99
        assert max(g.abs().max() for g in (back.dq, back.dk, back.dv)) < 65504 / 16


def test_cancellation_pairs_lie_in_different_tiles():
    for case in each("cancellation"):
        x, half = build(case), case.N // 2
        assert torch.equal(x.v[:, :, :half], -x.v[:, :, half:]) and torch.equal(x.k[:, :, :half], x.k[:, :, half:])
        assert half >= 64  # of tiles up to 64 keys, no key shares one with its opposite
        assert truth_of.forward(x.q, x.k, x.v, x.mask, case.softmax_scale).o.abs().max() < 1e-15


def test_offset_is_common_to_all_keys():
    for case in each("offset"):
        x = build(case)
        assert (x.v.double().mean(2).abs() > 3 * x.v.double().std(2)).double().mean() > 0.9
        assert (x.k.double().mean(2).abs() > x.k.double().std(2)).double().mean() > 0.5


def test_aligned_do_makes_dp_or_delta_vanish():
    for case in each("aligned-do"):
        x = build(case)
        o = truth_of.forward(x.q, x.k, x.v, x.mask, case.softmax_scale).o
        dp = x.do.double() @ x.v.double().mT
        delta = (x.do.double() * o).sum(-1, keepdim=True)
        along = x.do[..., 1:].abs().amax(-1) == 0
        assert 0.2 < along.double().mean() < 0.8
        cancelled = ((dp - delta).abs().mean(-1) / dp.abs().mean(-1))[along]
        assert cancelled.median() < 0.1
        assert (delta.squeeze(-1).abs() / dp.abs().mean(-1))[~along].median() < 0.2


def test_integers_and_sparse_integers_are_exact():
    for regime, top in (("integers", 2), ("sparse-integers", 2)):
        for case in each(regime):
            for x in (build(case).q, build(case).k, build(case).v, build(case).do):
                assert torch.equal(x, x.round()) and 1 <= x.abs().max() <= top
    sparse = torch.cat([build(c).v.flatten() for c in each("sparse-integers")])
    assert 0.8 < (sparse == 0).double().mean() < 0.87
    assert {int(v) for v in sparse.unique()} == {-2, -1, 0, 1, 2}


def test_correlated_rows_share_directions_and_a_large_channel():
    for case in each("correlated", D=64)[::3]:
        k = build(case).k.double()[0, 0]
        mean = k.mean(0).abs()
        channel = int(mean.argmax())
        assert mean[channel] > 7 and mean.sort().values[-2] < 1.5
        rest = torch.cat([k[:, :channel], k[:, channel + 1 :]], 1)
        energy = torch.linalg.svdvals(rest - rest.mean(0)).square()
        assert energy[:3].sum() / energy.sum() > 0.8
        assert 0.3 < logits(case).std() < 30


# -- edges -------------------------------------------------------------------------------------------------------------

MASKS = (
    MaskRecipe(),
    MaskRecipe(causal=True),
    MaskRecipe(causal=True, alignment="bottom-right"),
    MaskRecipe(window=(3, 5)),
    MaskRecipe(window=(16, 0), alignment="bottom-right"),
    MaskRecipe(boolean="random"),
    MaskRecipe(key_lengths=True),
)


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_needle_inside_is_an_edge_key_that_outweighs_all_others(mask):
    dominated, borders = [], []
    for case in each("needle-inside", mask=mask, D=64):
        seen = visible(case)
        some = seen.any(-1)
        w = logits(case).masked_fill(~seen, -math.inf).softmax(-1)[some]
        best = w.argmax(-1)
        dominated.append((w.amax(-1) > 0.99).double().mean())
        hidden_next = torch.nn.functional.pad(~seen[some], (1, 1), value=True)  # beyond the ends there is nothing
        border = hidden_next.gather(1, best[:, None]) | hidden_next.gather(1, best[:, None] + 2)
        borders.append(border.double().mean())
    assert sum(dominated) / len(dominated) > 0.9
    assert sum(borders) / len(borders) > 0.7
    assert sum(borders) / len(borders) < 1 or mask.boolean or mask.window == (3, 5)  # the rest are the tiles' edges


@pytest.mark.parametrize("mask", MASKS[1:], ids=str)
def test_needle_outside_is_a_hidden_neighbour_that_would_outweigh_all(mask):
    leaks, neighbours = [], []
    for case in each("needle-outside", mask=mask, D=64):
        seen = visible(case)
        rows = seen.any(-1) & ~seen.all(-1)
        if not rows.any():
            continue
        s, seen = logits(case)[rows], seen[rows]
        best = s.argmax(-1, keepdim=True)
        gap = s.amax(-1) - s.masked_fill(~seen, -math.inf).amax(-1)
        leaks.append((gap > 3).double().mean())
        beside = torch.nn.functional.pad(seen, (1, 1))
        neighbours.append((beside.gather(1, best) | beside.gather(1, best + 2)).double().mean())
    assert sum(leaks) / len(leaks) > 0.9
    assert sum(neighbours) / len(neighbours) > 0.9


def test_needle_inside_finds_the_diagonal_the_last_key_and_tile_edges():
    found = set()
    for case in each("needle-inside", mask=MaskRecipe(causal=True), D=64, M=130):
        best = logits(case).masked_fill(~visible(case), -math.inf).argmax(-1)
        diagonal = torch.arange(case.M)
        found |= {"diagonal"} if (best == diagonal).any() else set()
        found |= {t for t in (16, 32, 64, 128) for edge in (t - 1, t) if ((best == edge) & (diagonal > edge)).any()}
    for case in each("needle-inside", D=64):
        best = logits(case).argmax(-1)
        found |= {"last"} if (best == case.N - 1).any() else set()
        found |= {"first"} if (best == 0).any() else set()
    assert found == {"diagonal", "last", "first", 16, 32, 64, 128}


# -- what they are for -------------------------------------------------------------------------------------------------

TILED = (Path(__file__).parent / "kernels" / "tiled.py").read_text()
_P = "p = torch.exp(s - m_safe)\n"
#: regime -> (a fault that it finds and `normal` does not, text of the sound kernel, text of the faulty one)
ONLY_HERE = {
    "negative-logits": ("hidden keys at -1e4", "s.masked_fill(~visible[..., cols], -math.inf)",
                        "s.masked_fill(~visible[..., cols], -1e4)"),
    "sparse-mass": ("weights below 1e-3 skipped", _P, _P[:-1] + "; p = torch.where(p < 1e-3, 0.0, p)\n"),
    "underflow-edge": ("P flushed below 2^-14", "p.to(q.dtype).float() @ vf[:, :, cols]",
                       "torch.where(p < 2**-14, 0.0, p).to(q.dtype).float() @ vf[:, :, cols]"),
    "large-dp": ("dP in fp16", "(do.float() @ vf.mT - delta)", "((do.float() @ vf.mT).half().float() - delta)"),
    "huge": ("O accumulated in fp16", "acc = acc * alpha + ", "acc = (acc * alpha).half().float() + "),
}  # fmt: skip


@pytest.mark.parametrize("regime", ONLY_HERE)
def test_some_faults_show_in_one_regime_only(regime, tmp_path):
    _, sound, faulty = ONLY_HERE[regime]
    assert TILED.count(sound) == 1
    (tmp_path / "tiled.py").write_text(TILED)
    (tmp_path / "faulty.py").write_text(TILED.replace(sound, faulty))
    right, wrong = (load(f"{tmp_path / name}.py:attention") for name in ("tiled", "faulty"))

    def found(implementation, name):
        cases = [BASE.with_(regime=name, dtype=d, seed=s, M=101, N=101, mask=MaskRecipe(causal=bool(s % 2)))
                 for d in HALF for s in range(6)]  # fmt: skip
        return sum(bool(evaluate(c, implementation, "survey", thorough=False).failed) for c in cases)

    assert found(right, regime) == found(right, "normal") == 0
    assert found(wrong, regime) > found(wrong, "normal") // 2


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("mask", [MaskRecipe(causal=True), MaskRecipe(key_lengths=True)], ids=str)
def test_an_edge_off_by_one_is_gross_in_every_needle_case(mask, inside, tmp_path):
    """The mask is off by one key: it hides the last visible one, or shows the first hidden one."""
    wider = "visible = torch.nn.functional.pad(visible, (1, 0), value=True)[..., :-1]"
    narrower = "visible = torch.nn.functional.pad(visible, (0, 1))[..., 1:]"
    handle = "    out, lse = Tiled.apply("
    assert TILED.count(handle) == 1
    (tmp_path / "off.py").write_text(TILED.replace(handle, f"    {narrower if inside else wider}\n{handle}"))
    off = load(f"{tmp_path / 'off.py'}:attention")
    found = [
        bool(evaluate(c, off, "survey", thorough=False).failed)
        for c in each("needle-inside" if inside else "needle-outside", mask=mask, D=64, backward=False)
        if 1 < visible(c).any(-2).sum() < c.N or mask.causal
    ]
    assert len(found) > 8 and all(found)
