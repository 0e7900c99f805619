"""What the cases promise: same bits everywhere, every corner reachable, failing cases shrink to plain ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from flashproof.reports.record import Row
from flashproof.verify.case import Case, Layout, MaskRecipe, parse_case
from flashproof.verify.draws import Draws
from flashproof.verify.guards import checksums, inputs_unchanged
from flashproof.verify.implementation import recognise
from flashproof.verify.inputs import build
from flashproof.verify.loading import load
from flashproof.verify.plain import is_plain
from flashproof.verify.problems import UsageError
from flashproof.verify.profiles import PROFILES
from flashproof.verify.regimes import REGIMES
from flashproof.verify.run import not_covered
from flashproof.verify.shapes import ROUND
from flashproof.verify.shrink import shrink
from flashproof.verify.storage import far_axes, is_wide, mapped, storage_of
from flashproof.verify.strategies import cases
from flashproof.verify.survey import mask_templates, plain_sample, survey
from hypothesis import HealthCheck, find, given, settings

BASE = Case(B=1, H=2, HK=1, M=40, N=48, D=16, dtype="fp16", regime="normal", seed=5)
PATIENT = settings(max_examples=20_000, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_draws_are_the_same_bits_on_any_machine():
    """A frozen digest: if it changes, recorded cases no longer mean what they meant."""
    bits = np.concatenate([Draws(0, "q").normal(1000), Draws(1, "x").uniform(1000)]).tobytes()
    assert hashlib.sha256(bits).hexdigest()[:16] == "f1f579288691e84a"


def test_normal_draws_are_normal():
    x = Draws(0).normal(400_000)
    moments = [np.mean(x**k) for k in (1, 2, 3, 4)]
    # four standard errors of each moment of N(0, 1)
    for moment, want, sd in zip(moments, (0, 1, 0, 3), (1, 2**0.5, 15**0.5, 96**0.5), strict=True):
        assert abs(moment - want) < 4 * sd / 400_000**0.5
    assert 4.3 < np.abs(x).max() < 6.5


def test_streams_are_independent():
    a, b = Draws(0, "q").normal(10_000), Draws(0, "k").normal(10_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


# -- cases -------------------------------------------------------------------------------------------------------------


def test_case_survives_json():
    case = BASE.with_(
        mask=MaskRecipe(causal=True, window=(3, None), alignment="bottom-right", bias="alibi"), scale=-0.25
    )
    assert parse_case(case.to_json()) == case
    assert parse_case(case.to_json()).id == case.id
    assert case.with_(seed=6).id != case.id


@pytest.mark.parametrize(
    "change", [dict(B=0), dict(M=-1), dict(HK=3), dict(scale=float("inf")), dict(mask=MaskRecipe(window=(-1, 0)))]
)
def test_impossible_cases_are_refused(change):
    with pytest.raises(ValueError, match="must"):
        BASE.with_(**change)


def test_unknown_regime_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown regime"):
        build(BASE.with_(regime="nonsense"))


@pytest.mark.parametrize("layout", get_args(Layout))
def test_layouts_change_memory_and_not_values(layout):
    plain, other = build(BASE), build(BASE.with_(layout=layout))
    if layout != "expanded":
        assert all(torch.equal(getattr(plain, n), getattr(other, n)) for n in ("q", "k", "v", "do"))
    strides = {n: getattr(other, n).stride() for n in ("q", "k", "do")}
    assert (layout == "contiguous") == all(getattr(other, n).is_contiguous() for n in ("q", "k", "v", "do"))
    if layout == "expanded":
        assert strides["do"][2] == 0
    if layout == "columns":
        assert strides["q"][3] == BASE.M
    if layout == "gaps":
        assert other.q.storage_offset() % 2 == 1
        storage = storage_of(other.q)
        assert torch.isnan(storage).sum() == storage.numel() - other.q.numel()


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("sizes", [{}, {"M": 1}, {"M": 0}, {"N": 0}])
def test_masks_lie_in_memory_as_the_layout_says(layout, sizes):
    shapes = set()
    for seed in range(40):
        base = BASE.with_(B=3, seed=seed, mask=MaskRecipe(boolean="random", bias="hidden", key_lengths=True), **sizes)
        plain, other = build(base).mask, build(base.with_(layout=layout)).mask
        assert torch.equal(plain.key_lengths, other.key_lengths)
        for name in ("allowed", "bias"):
            was, x = getattr(plain, name), getattr(other, name)
            shapes.add(x.shape)
            assert torch.equal(was.expand(3, 2, base.M, base.N), x.expand(3, 2, base.M, base.N))
            if sizes:
                continue
            alike = x.shape[-2] == 1  # a single row
            heads = x.dim() > 2 and x.shape[:-2].numel() > 1
            expected = {
                "bshd": alike or not heads, "packed": False, "gaps": False, "columns": alike,
                "expanded": was.shape == (3, 2, base.M, base.N), "far": not far_axes(x.shape),
            }  # fmt: skip
            assert x.is_contiguous() == expected.get(layout, True)
            if layout == "expanded" and was.shape != x.shape:
                assert 0 in x.stride()[:2]
    assert other.key_lengths.is_contiguous() == (layout != "gaps")
    assert len(shapes) == (1 if layout == "expanded" else 6 if base.M == 1 else 8)


def test_masks_come_in_every_shape_that_broadcasts():
    masks = [build(BASE.with_(mask=MaskRecipe(boolean="random"), B=2, seed=s)).mask.allowed for s in range(60)]
    assert {tuple(m.shape) for m in masks} == {
        (2, 2, 40, 48),
        (2, 1, 40, 48),
        (1, 2, 40, 48),
        (1, 1, 40, 48),
        (40, 48),
        (2, 40, 48),
        (2, 1, 1, 48),
        (2, 1, 48),
        (2, 1, 40, 1),
    }


def test_fully_masked_rows_and_first_tiles_occur():
    x = build(BASE.with_(mask=MaskRecipe(boolean="empty-rows")))
    assert (~x.mask.allowed.any(-1)).any()
    x = build(BASE.with_(mask=MaskRecipe(boolean="first-tile")))
    assert not x.mask.allowed[..., :32].any() and x.mask.allowed[..., 32:].any()
    hidden = Counter()
    for seed in range(40):
        allowed = build(BASE.with_(N=300, seed=seed, mask=MaskRecipe(boolean="first-tile"))).mask.allowed
        hidden[int(allowed.reshape(-1, 300).any(0).int().argmax())] += 1
    assert {32, 64, 128, 256} <= set(hidden) and min(hidden) == 32


def test_documents_are_blocks_along_the_diagonal():
    """A tile of keys may be hidden before one that is not."""
    shapes, blocks, leading = set(), Counter(), 0
    for seed in range(60):
        allowed = build(BASE.with_(B=2, M=200, N=200, seed=seed, mask=MaskRecipe(boolean="documents"))).mask.allowed
        shapes.add(tuple(allowed.shape))
        seen = allowed.expand(2, 2, *allowed.shape[-2:])[0, 0]
        leading += bool((~seen[:, :64].any(-1) & seen[:, 64:].any(-1)).any())
        if len(seen) == 1:
            continue
        assert seen.diagonal().all() and torch.equal(seen, seen.T), "what a query sees, sees it"
        starts = {tuple(row.nonzero().flatten()[[0, -1]].tolist()) for row in seen}
        assert sum(end + 1 - start for start, end in starts) == 200, "blocks without a gap"
        blocks[len(starts)] += 1
    assert len(shapes) == 8 and {2, 3, 4} <= set(blocks) and leading > 20
    uneven = build(BASE.with_(M=5, N=200, mask=MaskRecipe(boolean="documents"))).mask.allowed
    assert uneven.any() and not uneven.all()


def test_bands_are_causal_windows():
    """A tile may be seen whole by its first query, and not by its last."""
    first_whole = 0
    for seed in range(40):
        allowed = build(BASE.with_(B=2, M=130, N=130, seed=seed, mask=MaskRecipe(boolean="band"))).mask.allowed
        seen = allowed.expand(2, 2, *allowed.shape[-2:])[1, 1]
        assert seen[:, -1].any(), "the last query sees the last key"
        if len(seen) == 1:
            continue
        widths = seen.sum(-1)
        assert seen.diagonal().all() and not seen.triu(1).any() and (widths.diff() >= 0).all()
        tile = seen[64:128, :64]
        first_whole += bool(tile[0].all() and not tile.all())
    assert first_whole > 10


def test_large_biases_have_exponentials_that_overflow():
    largest = {"fp16": [], "bf16": []}
    for dtype, found in largest.items():
        for seed in range(20):
            case = BASE.with_(B=2, M=130, N=140, seed=seed, dtype=dtype, mask=MaskRecipe(bias="large"))
            bias = build(case).mask.bias
            assert bias.isfinite().all()
            found.append(float(bias.max()))
        assert min(found) > 11.1, "the logarithm of fp16's largest number"
        assert max(found) > 88.8, "the logarithm of fp32's"


def test_lowest_biases_are_causal_with_padding_on_the_left():
    """Some queries see nothing but the dtype's lowest number; no element is infinite."""
    paddings, alone = Counter(), 0
    for seed in range(60):
        case = BASE.with_(B=2, M=130, N=140, seed=seed, dtype="bf16", mask=MaskRecipe(bias="lowest"))
        inputs = build(case)
        bias = inputs.mask.bias
        assert set(bias.unique().tolist()) == {0.0, torch.finfo(torch.bfloat16).min}
        seen = (bias == 0).expand(2, 2, *bias.shape[-2:])[1, 1]
        assert seen[-1, -1], "the last query sees the last key"
        padding = int(seen[-1].nonzero()[0])
        keys, queries = torch.arange(140), torch.arange(130)[:, None]
        causal = keys <= queries + 10 if len(seen) > 1 else keys >= 0
        assert torch.equal(seen, (causal & (keys >= padding)).expand(seen.shape))
        paddings[padding] += 1
        alone += not seen.any(-1).all()
    assert set(paddings) == {0, 1, 140 // 3, 32, 64, 128} and alone > 20


def test_one_tensor_of_a_far_case_needs_offsets_of_more_than_31_bits():
    """Along each of its short axes; a step alone fits into 31 bits."""
    found = Counter()
    for seed in range(80):
        x = build(BASE.with_(B=3, H=4, HK=4, seed=seed, layout="far"))
        last = {n: [(size - 1) * step for size, step in zip(t.shape, t.stride(), strict=True)]
                for n in ("q", "k", "v", "do") if (t := getattr(x, n)).numel()}  # fmt: skip
        (name,) = [n for n, offsets in last.items() if max(offsets) >= 2**31]
        axis = max(range(4), key=last[name].__getitem__)
        assert getattr(x, name).stride(axis) < 2**31
        found[name, axis] += 1
        others = [n for n in last if n != name]
        assert all(getattr(x, n).is_contiguous() for n in others)
    assert len(found) == 12, "each of four along batch, heads and rows"
    short = build(BASE.with_(B=2, H=2, HK=1, M=1, N=2, layout="far"))
    assert all(t.is_contiguous() for t in (short.q, short.k, short.v, short.do)), "no axis to be far along"


def test_a_far_tensor_is_copied_compared_and_put_back_by_its_elements():
    x = build(BASE.with_(layout="far", seed=1))
    (wide,) = [t for t in (x.q, x.k, x.v, x.do) if is_wide(t)]
    copy = mapped(wide, torch.clone)
    assert copy.stride() == wide.stride() and copy.data_ptr() != wide.data_ptr() and torch.equal(copy, wide)
    before = checksums(x)
    assert inputs_unchanged(before, x).passed
    was = wide[-1, -1, -1, -1].clone()
    wide[-1, -1, -1, -1] = was + 1
    check = inputs_unchanged(before, x)
    assert not check.passed and wide[-1, -1, -1, -1] == was


def test_mixed_layouts_differ_in_the_stride_of_the_head_dimension():
    strided = Counter()
    for seed in range(40):
        x = build(BASE.with_(seed=seed, layout="mixed"))
        strided[tuple(n for n in ("q", "k", "v", "do") if getattr(x, n).stride(-1) != 1)] += 1
    assert set(strided) == {("q",), ("k",), ("v",), ("do",)}


def test_queries_may_be_one_for_all_batch_elements():
    found = Counter(build(BASE.with_(B=3, seed=seed, layout="expanded")).q.stride(0) == 0 for seed in range(40))
    assert found[True] > 10 and found[False] > 10


# -- the survey --------------------------------------------------------------------------------------------------------


def test_what_no_case_covers_is_said():
    profile = PROFILES["quick"]
    flash, plain = load("flash"), recognise("plain", lambda query, key, value, is_causal=False: query)
    drawn = list(survey(flash, profile, 0, count=2000))
    largest = (
        f"more than {max(c.B for c in drawn)} batch elements, more than {max(c.H for c in drawn)} heads, "
        f"more than {max(c.B * c.H for c in drawn)} of both multiplied"
    )
    of_a_bias = {"an additive bias in another dtype than the inputs'", "gradients of an additive bias"}
    for implementation, offered in ((flash, of_a_bias), (plain, set())):
        missing = not_covered(implementation, profile)
        assert largest in missing and of_a_bias & set(missing) == offered
        assert "inputs that hold NaN or infinity" in missing
    assert "gradients of an additive bias" not in not_covered(replace(flash, has_backward=False), profile)
    torchs = recognise("torch's", lambda query, key, value, attn_mask=None, is_causal=False: query)
    both = "is_causal given together with attn_mask, which torch refuses"
    assert [both in not_covered(i, profile) for i in (torchs, plain, flash)] == [True, False, False]


@pytest.fixture(scope="module")
def quick():
    return list(survey(load("standard"), PROFILES["quick"], 0))


def test_survey_is_reproducible_and_seeds_differ(quick):
    again = list(survey(load("standard"), PROFILES["quick"], 0))
    other = list(survey(load("standard"), PROFILES["quick"], 1))
    assert again == quick
    assert len({c.id for c in quick} & {c.id for c in other}) == 0
    assert len({c.id for c in quick}) == len(quick) >= 1000


def test_survey_covers_what_it_promises(quick):
    assert {c.regime for c in quick} == set(REGIMES)
    assert {c.dtype for c in quick} == {"fp16", "bf16"}
    assert {str(c.mask) for c in quick} == {str(m) for m in mask_templates()}
    assert {c.layout for c in quick} == set(get_args(Layout))
    for promise in (
        lambda c: c.M == 0,
        lambda c: c.N == 0,
        lambda c: c.M == 1,
        lambda c: c.M < c.N,
        lambda c: c.M > c.N > 0,
        lambda c: c.M == c.N > 0,
        lambda c: c.M % 32 == 1,
        lambda c: c.N % 32 == 31,
        lambda c: c.N % 8 == 4,
        lambda c: c.H > c.HK > 1,
        lambda c: c.H // c.HK >= 8 > c.HK > 1,
        lambda c: c.mask.causal and c.mask.window is not None and c.mask.window[0] and c.mask.window[1] == 0,
        lambda c: c.mask.window is not None and c.mask.window[0] in (63, 64) and c.N > 64,
        lambda c: c.HK == 1 < c.H,
        lambda c: c.scale == 0.0,
        lambda c: c.scale is not None and c.scale < 0,
        lambda c: c.B > 1,
        lambda c: c.mask.bias == "lowest",
        lambda c: c.mask.bias == "large",
        lambda c: c.H // c.HK >= 8 and c.M > 8 and c.N > 32,
        lambda c: c.H // c.HK >= 8 > c.HK > 1 and c.M == 1 and c.N > 32,
        lambda c: c.D not in (16, 32, 64, 128),
    ):
        assert any(promise(c) for c in quick)


def test_every_kind_of_shape_comes_in_a_round(quick):
    """What is rare in a round comes once."""
    for promise in (
        lambda c: c.M == 0 < c.N,
        lambda c: c.N == 0 < c.M,
        lambda c: c.N > 256 > 8 > c.M,
        lambda c: c.M > 256 > 8 > c.N,
        lambda c: c.B * c.H >= 16,
    ):
        for begin in range(0, 10 * len(ROUND), len(ROUND)):
            assert any(promise(c) for c in quick[begin : begin + len(ROUND)])


def test_plain_cases_are_told_from_others(quick):
    def row(case):
        identity = dict(case_id=case.id, phase="survey", status="ok", regime=case.regime, mask=str(case.mask))
        sizes = {name: getattr(case, name) for name in ("B", "H", "HK", "M", "N", "D", "dtype", "layout")}
        return Row(**identity, **sizes, scale=case.softmax_scale)

    for implementation in (load("flash"), recognise("bare", lambda query, key, value: query)):
        drawn = list(plain_sample(implementation, PROFILES["quick"], 3, 64))
        assert all(is_plain(row(c)) for c in drawn)
        assert Counter(c.regime for c in drawn)["normal"] == 32
        assert {c.dtype for c in drawn} == {"fp16", "bf16"} and len({c.M for c in drawn}) > 4
    expected = len(quick) * ROUND.count("plain") / len(ROUND)
    assert expected <= sum(is_plain(row(c)) for c in quick) < 1.3 * expected
    plain = next(c for c in quick if is_plain(row(c)))
    for other in (dict(N=97), dict(M=33, N=64), dict(D=64), dict(scale=0.3), dict(layout="gaps"), dict(B=2),
                  dict(mask=MaskRecipe(bias="alibi")), dict(regime="plateau")):  # fmt: skip
        assert not is_plain(row(plain.with_(**other)))


def test_survey_only_asks_what_a_signature_offers():
    from flashproof.verify.implementation import recognise

    bare = recognise("bare", lambda query, key, value: query)
    drawn = list(survey(bare, PROFILES["quick"], 0, count=50))
    assert all(bare.lacks(c) is None for c in drawn)
    assert all(str(c.mask) == "none" and c.scale is None and c.H == c.HK for c in drawn)


# -- Hypothesis --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "corner",
    [
        lambda c: c.M == 0,
        lambda c: c.N == 0 < c.M,
        lambda c: c.N % 32 == 1 and c.N > 32,
        lambda c: c.D not in (1, 2, 4, 8, 16, 32, 64, 128, 256),
        lambda c: c.mask.boolean == "empty-rows",
        lambda c: c.mask.boolean == "first-tile" and c.N > 32,
        lambda c: c.mask.boolean == "documents",
        lambda c: c.mask.boolean == "band",
        lambda c: len(c.mask.kinds()) >= 4,
        lambda c: c.mask.causal and c.M > c.N,
        lambda c: c.mask.window == (0, 0),
        lambda c: c.scale == 0.0,
        lambda c: c.scale is not None and c.scale < 0,
        lambda c: c.regime == "extreme-logits" and c.dtype == "bf16",
        lambda c: c.H // c.HK == 3,
        lambda c: c.layout == "gaps",
        lambda c: c.layout == "mixed",
        lambda c: c.layout == "far",
        lambda c: c.mask.bias == "lowest",
    ],
)
def test_corners_can_be_drawn_and_shrink(corner):
    smallest = find(cases(), corner, settings=PATIENT)
    assert corner(smallest)
    assert smallest.B == 1 and smallest.seed == 0 and smallest.M <= 2 and smallest.N <= 65


@given(cases(max_length=40, head_dims=(1, 16)))
@settings(max_examples=60, database=None, derandomize=True, deadline=None)
def test_every_drawn_case_builds(case):
    x = build(case)
    assert x.q.shape == (case.B, case.H, case.M, case.D)
    visible, _ = x.mask.rows(0, case.M, case.M, case.N, torch.device("cpu"))
    torch.broadcast_to(visible, (case.B, case.H, case.M, case.N))


# -- our shrinker ------------------------------------------------------------------------------------------------------


def first(fails):
    return lambda candidates: next((i for i, c in enumerate(candidates) if fails(c)), None)


def test_shrinks_to_the_smallest_in_every_dimension():
    def fails(c):
        return c.N >= 17 and c.H > c.HK and c.mask.causal and c.D % 3 == 0

    start = BASE.with_(B=3, H=6, HK=2, M=101, N=97, D=48, layout="gaps", scale=0.3, regime="outlier",
                       mask=MaskRecipe(causal=True, bias="alibi", key_lengths=True))  # fmt: skip
    small, steps, minimal = shrink(start, first(fails), deadline=float("inf"))
    assert minimal and steps > 0
    assert (small.B, small.H, small.HK, small.M, small.N, small.D) == (1, 2, 1, 0, 17, 3)
    assert (
        small.mask == MaskRecipe(causal=True)
        and small.layout == "contiguous"
        and small.regime == "normal"
        and small.scale is None
    )


def test_shrinking_stops_in_time_and_says_so():
    small, _, minimal = shrink(BASE, first(lambda _: True), deadline=-1.0)
    assert small == BASE and not minimal
