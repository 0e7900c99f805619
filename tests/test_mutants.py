"""The catalogue of faults: each applies and changes bits, the subtle are measured to be so, variants are right."""

from __future__ import annotations

import inspect

import pytest
import torch
from flashproof.kernels import interpreter
from flashproof.kernels.mutants import MUTANTS, VARIANTS, Edit, Mutant, diff_of, load_module, source_of
from flashproof.kernels.mutants.source import FORWARD, sound_source
from flashproof.verify import guards
from flashproof.verify.case import Case, MaskRecipe
from flashproof.verify.errors import same_bits
from flashproof.verify.evaluate import evaluate
from flashproof.verify.expected import reference
from flashproof.verify.inputs import build
from flashproof.verify.loading import load
from flashproof.verify.problems import UsageError


def case(M, N, D=16, dtype="fp16", B=1, H=1, HK=1, regime="normal", seed=0, mask=None, **rest):
    mask = MaskRecipe(**(mask or {}))
    return Case(B=B, H=H, HK=HK, M=M, N=N, D=D, dtype=dtype, regime=regime, seed=seed, mask=mask, **rest)


#: among them every mutant's bits differ from the sound kernel's
CASES = {
    "plain": case(65, 97, B=2, H=6, HK=2),
    "bf16": case(65, 97, 40, "bf16", layout="gaps"),
    "causal": case(65, 65, scale=0.3, mask=dict(causal=True)),
    "bottom-right": case(33, 70, mask=dict(causal=True, alignment="bottom-right")),
    "window": case(70, 96, scale=0.3, mask=dict(window=(7, 33), alignment="bottom-right")),
    "causal window": case(40, 24, mask=dict(window=(31, 2), causal=True)),
    "open window": case(40, 40, mask=dict(window=(None, 2))),
    "boolean": case(40, 45, B=2, H=2, HK=2, seed=3, mask=dict(boolean="empty-rows")),
    "bias": case(40, 45, B=2, H=4, HK=4, seed=2, mask=dict(bias="random")),
    "padding": case(40, 70, B=3, seed=1, mask=dict(key_lengths=True)),
    "other padding": case(40, 70, B=3, seed=2, mask=dict(key_lengths=True)),
    "large": case(33, 100, regime="large-logits", seed=1),
    "negative": case(33, 70, regime="extreme-logits", scale=-0.2, seed=1),
    "extreme": case(8, 40, regime="extreme-logits", seed=1),
    "offset": case(16, 33, 128, regime="offset", seed=3),
    "long": case(129, 129, 64),
    "long row": case(4, 300),
    "no keys": case(5, 0),
    "no queries": case(0, 5),
    "one query": case(1, 40),
    "scale 0": case(8, 8, scale=0.0),
    "columns": case(20, 40, layout="columns"),
    "far rows": case(20, 40, layout="far", seed=3),
    "far heads": case(20, 40, H=4, HK=4, layout="far", seed=3),
    "far bias": case(20, 40, layout="far", mask=dict(bias="random"), seed=5),
    "heads": case(8, 33, H=4, HK=4),
    "inference": case(33, 33, mask=dict(causal=True), backward=False),
    "narrow window": case(40, 40, mask=dict(window=(1, 0))),
}
#: ordinary inputs: N(0, 1), lengths of 100 to 200
ORDINARY = [
    Case(B=1, H=2, HK=1, M=M, N=N, D=D, dtype=dtype, regime="normal", seed=i, mask=mask)
    for dtype in ("fp16", "bf16")
    for i, (M, N, D, mask) in enumerate(
        ((160, 160, 64, MaskRecipe(causal=True)), (113, 163, 40, MaskRecipe(bias="random"))), start=2
    )
]
ONE_CALL = [name for name, m in MUTANTS.items() if not m.use and not name.endswith("memory")]
_sound: dict[str, object] = {}


@pytest.fixture(autouse=True)
def _interpreted():
    with interpreter.interpret():
        yield


def outcome(spec, name, seed=0):
    """Tensors by name, or the kind of error."""
    torch.manual_seed(seed)
    inputs = build(CASES[name])
    before = guards.checksums(inputs)
    try:
        found = guards.run(load(spec), CASES[name], inputs).tensors()
    except Exception as e:  # noqa: BLE001  (whatever a mutant does is an outcome)
        return type(e).__name__
    found["inputs"] = torch.tensor(float(guards.inputs_unchanged(before, inputs).passed))
    return found


def differs(mutant, name, seed=0):
    if name not in _sound:
        _sound[name] = outcome("flash", name)
    sound, got = _sound[name], outcome(f"mutant:{mutant}", name, seed)
    if isinstance(got, str):
        return True
    return any(got[n].dtype != x.dtype or not same_bits(got[n], x).all() for n, x in sound.items())


def test_there_are_many_and_each_is_described():
    assert len(MUTANTS) >= 120 and sum(m.subtle for m in MUTANTS.values()) >= 30 and len(VARIANTS) >= 10
    for m in MUTANTS.values():
        assert m.mirrors and m.what.endswith(".") and "\n" not in m.what and m.edits
        assert set(m.tensors) <= {"out", "lse", "dq", "dk", "dv"}
    for name in (*MUTANTS, *VARIANTS):
        assert name == name.lower() and " " not in name and "_" not in name
    texts = [source_of(m) for m in (*MUTANTS.values(), *VARIANTS.values())]
    assert len(set(texts)) == len(texts) and sound_source() not in texts


@pytest.mark.parametrize("edited", [*MUTANTS.values(), *VARIANTS.values()], ids=lambda m: m.name)
def test_each_is_one_module_a_few_lines_from_the_sound_kernel(edited):
    text = source_of(edited)
    compile(text, edited.name, "exec")
    assert "from ." not in text and "__future__" not in text
    changed = [line for line in diff_of(edited).splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len(changed) <= 30
    module = load_module(edited)
    assert inspect.getsource(module.attention).strip() in text
    assert inspect.getsource(module.flash_forward.fn).strip() in text


def test_a_wrong_edit_is_an_error():
    with pytest.raises(ValueError, match=r"forward\.py has 0 times 'no such text', not once"):
        source_of(Mutant("wrong", "own", "Nothing.", (), (Edit(FORWARD, "no such text", ""),)))
    with pytest.raises(ValueError, match="not once"):
        source_of(Mutant("wrong", "own", "Nothing.", (), (Edit(FORWARD, "alpha", "beta"),)))
    with pytest.raises(ValueError, match=r"no part 'other\.py'"):
        source_of(Mutant("wrong", "own", "Nothing.", (), (Edit("other.py", "alpha", "beta"),)))


def test_names():
    assert load("mutant:lse-in-base-2").function is load_module(MUTANTS["lse-in-base-2"]).attention
    assert load("variant:p-fp32").name == "variant:p-fp32"
    with pytest.raises(UsageError, match=r"no mutant 'lse-in-base-3'; there are lse-in-base-2, .* more$"):
        load("mutant:lse-in-base-3")
    with pytest.raises(UsageError, match="no variant 'lse-in-base-2'"):
        load("variant:lse-in-base-2")


@pytest.mark.parametrize("name", ONE_CALL)
def test_its_bits_differ(name):
    """And the sound kernel's, run before, are not taken for its own: nothing is cached between them."""
    if "random" in name:
        assert any(differs(name, "plain", seed) for seed in range(60))
    elif "-by-call" in name:
        assert differs(name, "plain") != differs(name, "plain")
    else:
        assert any(differs(name, shape) for shape in CASES)


@pytest.mark.parametrize(("name", "held"), [("maximum-starts-from-memory", 9.0), ("dv-added-to-memory", 0.75)])
def test_what_memory_held_shows(name, held, monkeypatch):
    assert not differs(name, "plain")  # where it held NaN
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(*shape, held, **options))
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, held, **options))
    inputs = build(CASES["plain"])
    sound, faulty = (load(spec)(CASES["plain"], inputs).tensors() for spec in ("flash", f"mutant:{name}"))
    assert not all(same_bits(sound[n], faulty[n]).all() for n in sound)


@pytest.fixture(scope="module")
def known():
    with interpreter.interpret():
        return [(reference(c, build(c), stores_scores=False), load("flash")(c, build(c)).tensors()) for c in ORDINARY]


def worst_error(spec, known):
    """The largest error over standard attention's, of any tensor of any ordinary case; and whether any bits differ."""
    worst, differ = 0.0, False
    for c, (expected, sound) in zip(ORDINARY, known, strict=True):
        for name, value in load(spec)(c, build(c)).tensors().items():
            differ |= not same_bits(value, sound[name]).all()
            largest = [float((x.double() - expected.truth[name]).abs().max()) for x in (value, expected.standard[name])]
            worst = max(worst, largest[0] / largest[1])
    return worst, differ


@pytest.mark.parametrize("name", [n for n, m in MUTANTS.items() if m.subtle])
def test_a_comparison_of_largest_errors_misses_the_subtle(name, known):
    worst, differ = worst_error(f"mutant:{name}", known)
    assert worst <= 2.0 and differ


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_right(name, known):
    for shape in ("plain", "bf16", "bottom-right", "window", "boolean", "padding", "negative"):
        found = evaluate(CASES[shape], load(f"variant:{name}"), "hunt", statistical=True)
        assert found.status == "ok" and {c.name for c in found.failed} <= {"batch-invariance"}, (shape, found.failed)
    assert worst_error(f"variant:{name}", known)[0] <= 2.0


# -- faults that one call does not show --------------------------------------------------------------------------------


def tensors(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, 20, 16, generator=g).half().requires_grad_() for _ in range(3)]


def both(name):
    return load("flash").function, load(f"mutant:{name}").function


def test_a_kept_output():
    sound, faulty = both("output-buffer-kept")
    first = faulty(*tensors(0))
    assert torch.equal(first, sound(*tensors(0)))
    faulty(*tensors(1))
    assert torch.equal(first, sound(*tensors(1)))


def gradients(function, inputs, *, between=None, of=(0, 1, 2), lse=False):
    out = function(*inputs, return_lse=True)
    if between:
        function(*between)
    loss = out[0].float().sum() + (out[1].sum() if lse else 0.0)
    return torch.autograd.grad(loss, [inputs[i] for i in of])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_kept_lse():
    sound, faulty = both("lse-buffer-kept")
    assert same(gradients(faulty, tensors()), gradients(sound, tensors()))
    assert not same(gradients(faulty, tensors(), between=tensors(1)), gradients(sound, tensors(), between=tensors(1)))


def test_a_gradient_of_the_query_alone():
    sound, faulty = both("dq-alone")
    assert same(gradients(faulty, tensors()), gradients(sound, tensors()))

    def alone(function):
        q, k, v = tensors()
        return gradients(function, [q, k.detach(), v.detach()], of=(0,))

    assert not same(alone(faulty), alone(sound))


@pytest.mark.parametrize("name", ["lse-gradient-ignored"])
def test_a_gradient_through_the_lse(name):
    sound, faulty = both(name)
    assert same(gradients(faulty, tensors()), gradients(sound, tensors()))
    assert not same(gradients(faulty, tensors(), lse=True)[:2], gradients(sound, tensors(), lse=True)[:2])
