"""Bounds and predictors against emulated kernels: correct ones stay within, broken ones do not.

The emulation is flash attention in fp32 with the liberties that real kernels take: tile size and order,
base 2 or e, P rounded or not, row sums of either, a lagging maximum, split keys, pre-scaled operands,
truncating accumulators, flush to zero. A planted fault changes one line of it.
"""

import math
import random
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from flashproof.reference import (
    ANY,
    FLASH,
    STANDARD,
    STANDARD_FP32,
    Arrangement,
    Bounds,
    Forward,
    Gradients,
    Mask,
    backward,
    blocks,
    certify,
    forward,
    natural_scales,
    predict,
    standard,
)
from flashproof.verify.case import Case
from flashproof.verify.inputs import build
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

NAMES = ("out", "lse", "dq", "dk", "dv")
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
Results = dict[str, Tensor]  # by name, of NAMES


@dataclass(frozen=True)
class Kernel:
    """One way to write flash attention, and at most one fault."""

    tile: int = 32
    rounded: bool = True  # P rounded for P V and P^T dO
    sum_rounded: bool = False
    delta: str = "output"
    lag: float = 0.0
    reverse: bool = False
    parts: int = 1
    base2: bool = True
    truncate: bool = False
    prescaled: int = 0  # 1: k times scale; 2: q and k times sqrt(scale)
    flush: bool = False
    fault: str = ""

    def flushed(self, x: Tensor) -> Tensor:
        return torch.where(x.abs() < 2.0**-126, 0.0, x) if self.flush else x

    def exp(self, x: Tensor) -> Tensor:
        return self.flushed(torch.exp2(x) if self.base2 else torch.exp(x))

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """A @ b, with an accumulator that is truncated after every 16 terms if asked for."""
        if not self.truncate:
            return a @ b
        acc = torch.zeros(*a.shape[:-1], b.shape[-1])
        for i in range(0, a.shape[-1], 16):
            exact = acc.double() + a[..., i : i + 16].double() @ b[..., i : i + 16, :].double()
            acc = exact.float()
            too_far = (acc.double().abs() > exact.abs()) & acc.isfinite()
            acc = torch.where(too_far, torch.nextafter(acc, torch.zeros_like(acc)), acc)
        return acc


def run(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, do: Tensor, mask: Mask, scale: float) -> Results:
    """Forward and backward of the emulated kernel."""
    (B, H, M, D), N, G, dtype = q.shape, k.shape[2], q.shape[1] // k.shape[1], q.dtype
    log2e = math.log2(math.e) if kernel.base2 else 1.0
    if kernel.fault == "wrong scale":
        scale *= 1.5

    def r(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    visible, bias = mask.rows(0, M, M, N, q.device)
    visible = visible.expand(B, H, M, N)
    if kernel.fault == "last key dropped":
        visible = visible & (torch.arange(N) < N - 1)
    if kernel.fault == "causal off by one":
        visible = visible | (torch.arange(N)[None, :] == torch.arange(M)[:, None] + 1)
    qf, kf, vf, dof = (kernel.flushed(x.float().repeat_interleave(H // x.shape[1], 1)) for x in (q, k, v, do))
    kp = r(kf * (scale * log2e)) if kernel.prescaled == 1 else kf
    if kernel.prescaled == 2:
        root = math.sqrt(abs(scale))
        s = kernel.product(r(qf * math.copysign(root, scale)), r(kf * root).mT) * log2e
    else:
        s = kernel.product(qf, kp.mT) * (1.0 if kernel.prescaled else torch.tensor(scale * log2e))
    if bias is not None:
        s = s + bias.float() * log2e
    s = s.masked_fill(~visible, -torch.inf)

    tiles = list(range(0, N, kernel.tile))[:: -1 if kernel.reverse else 1]
    partial: list[tuple[Tensor, Tensor]] = []
    for part in (tiles[n :: kernel.parts] for n in range(kernel.parts)):
        m = torch.full((B, H, M, 1), -torch.inf)
        l, acc = torch.zeros(B, H, M, 1), torch.zeros(B, H, M, D)
        for j in part:
            s_j = s[..., j : j + kernel.tile]
            m_j = torch.maximum(m, s_j.amax(-1, keepdim=True))
            lagging = (m_j - m <= kernel.lag * (1 if kernel.base2 else math.log(2))) & m.isfinite()
            m_j = torch.where(lagging, m, m_j)
            shift = torch.where(m_j == -torch.inf, 0.0, m_j)
            alpha = torch.where(m == shift, 1.0, kernel.exp(m - shift))
            p = kernel.exp(s_j - shift)
            p_r = r(p) if kernel.rounded else p
            l_alpha = torch.ones_like(alpha) if kernel.fault == "row sum not rescaled" else alpha
            l = l * l_alpha + (p_r if kernel.sum_rounded else p).sum(-1, keepdim=True)
            acc_alpha = torch.ones_like(alpha) if kernel.fault == "output not rescaled" else alpha
            acc = kernel.flushed(acc * acc_alpha + kernel.product(p_r, vf[..., j : j + kernel.tile, :]))
            m = m_j
        log = m + (torch.log2(l) if kernel.base2 else torch.log(l))
        partial.append((torch.where(l > 0, acc / l, 0.0), log))
    top = torch.stack([log for _, log in partial]).amax(0)
    top = torch.where(top == -torch.inf, 0.0, top)
    w = [kernel.exp(log - top) for _, log in partial]
    total = torch.stack(w).sum(0)
    o = torch.stack([w_n * o_n for w_n, (o_n, _) in zip(w, partial, strict=True)]).sum(0)
    o = r(kernel.flushed(torch.where(total > 0, o / total, 0.0)))
    lse = (top + (torch.log2(total) if kernel.base2 else torch.log(total))) / log2e

    p = kernel.exp(s - torch.where(lse == -torch.inf, 0.0, lse * log2e)).masked_fill(~visible, 0.0)
    dp = kernel.product(dof, vf.mT)
    delta = ((dof * o) if kernel.delta == "output" else (p * dp)).sum(-1, keepdim=True)
    if kernel.fault == "no delta":
        delta = torch.zeros_like(delta)
    ds = r(kernel.flushed(p * (dp - delta)).masked_fill(~visible, 0.0))
    p = r(p) if kernel.rounded else p
    dq = kernel.product(ds, kp) / log2e if kernel.prescaled == 1 else kernel.product(ds, kf) * scale
    dk, dv = kernel.product(ds.mT, qf) * scale, kernel.product(p.mT, dof)
    dk, dv = (x.view(B, H // G, G, N, D).sum(2) for x in (dk, dv))
    return {"out": o.to(dtype), "lse": lse[..., 0]} | {
        name: kernel.flushed(x).to(dtype) for name, x in (("dq", dq), ("dk", dk), ("dv", dv))
    }


@dataclass(frozen=True)
class Problem:
    """Tensors and what is true of them."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    mask: Mask
    scale: float
    truth: Forward = field(init=False)
    gradients: Gradients = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "truth", forward(self.q, self.k, self.v, self.mask, self.scale))
        object.__setattr__(self, "gradients", backward(*self.tensors, self.mask, self.scale))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q, self.k, self.v, self.do

    def exact(self) -> Results:
        g = self.gradients
        return {"out": self.truth.o, "lse": self.truth.lse, "dq": g.dq, "dk": g.dk, "dv": g.dv}

    def bounds(self, arrangement: Arrangement) -> Bounds:
        return certify(*self.tensors, self.mask, self.scale, arrangement, self.truth, self.gradients)

    def kernel(self, kernel: Kernel) -> Results:
        return run(kernel, *self.tensors, self.mask, self.scale)

    def standard(self, softmax: standard.Softmax) -> Results:
        f = standard.forward(*self.tensors[:3], self.mask, self.scale, softmax)
        g = standard.backward(*self.tensors, self.mask, self.scale, softmax)
        return {"out": f.o, "lse": f.lse, "dq": g.dq, "dk": g.dk, "dv": g.dv}

    def excess(self, results: Results, bounds: Bounds) -> dict[str, float]:
        """Largest error / bound of each tensor; NaN and Inf count as infinite where the bound is finite."""
        worst = {}
        for name, got in results.items():
            bound, want = getattr(bounds, name), self.exact()[name]
            error = torch.where(got.double() == want, 0.0, (got.double() - want).abs())
            inside = (error <= bound) | torch.isinf(bound)
            ratio = torch.where(inside, (error / bound).nan_to_num(0.0, 0.0), (error / bound).nan_to_num(torch.inf))
            worst[name] = float(ratio.max()) if ratio.numel() else 0.0
        return worst

    def within(self, results: Results, bounds: Bounds) -> bool:
        return all(x <= 1 for x in self.excess(results, bounds).values())


REGIMES = (
    "normal", "uniform", "outlier", "large", "ties", "one-hot", "equal keys", "plateau", "one-signed ties",
    "ones", "cancelling", "increasing", "decreasing", "subnormal", "tiny", "offset", "huge v", "huge do",
)  # fmt: skip


def draw(regime: str, shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> list[Tensor]:
    """q, k, v, do of a regime; shape is (B, H, HK, M, N, D)."""
    B, H, HK, M, N, D = shape
    sizes = ((B, H, M, D), (B, HK, N, D), (B, HK, N, D), (B, H, M, D))
    q, k, v, do = (torch.randn(s, generator=g, dtype=torch.float64) for s in sizes)
    subnormal = {torch.float16: 2.0**-20, torch.bfloat16: 2.0**-130, torch.float32: 2.0**-140}[dtype]
    huge = 3e3 if dtype == torch.float16 else 1e36
    ramp = torch.arange(N, dtype=torch.float64)
    match regime:
        case "uniform":
            q, k, v, do = (torch.rand(s, generator=g, dtype=torch.float64) for s in sizes)
        case "outlier":
            q, k, v = (x * torch.where(torch.rand(x.shape, generator=g) < 0.002, 10.0, 1.0) for x in (q, k, v))
        case "large":
            q = q * 16
        case "ties":  # logits of about 1e4 that differ little
            q, k = 100 + q / 10, 100 / math.sqrt(D) + k / 1000
        case "one-hot":
            q = q * 100
        case "equal keys":
            k = k[:, :, :1].expand_as(k)
        case "plateau":
            q, k, v = torch.ones_like(q), torch.full_like(k, -0.6289 / math.sqrt(D)), v.abs() + 1
            k[:, :, N // 2] = 0
        case "one-signed ties":
            k[:, :, N // 2 :], v = 3 * k[:, :, :1], -(v.abs() + 2)
        case "ones":
            v = torch.ones_like(v)
        case "cancelling":
            k[:, :, N // 2 : N // 2 * 2], v[:, :, N // 2 : N // 2 * 2] = k[:, :, : N // 2], -v[:, :, : N // 2]
        case "increasing" | "decreasing":
            q[..., 0], k[..., 0] = math.sqrt(D), 0.4 * (ramp if regime == "increasing" else -ramp)
        case "subnormal":
            v, do = v * subnormal, do * subnormal * 4
        case "tiny":
            q, k, v, do = (x * (2.0**-18 if dtype == torch.float16 else 2.0**-70) for x in (q, k, v, do))
        case "offset":
            k, v = k + 8 * k[:, :, :1], v + 8 * v[:, :, :1]
        case "huge v":
            v = v * huge
        case "huge do":
            do = do * huge
    return [x.to(dtype) for x in (q, k, v, do)]


def draw_mask(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Mask:
    B, H, _, M, N, _ = shape
    match rng.randrange(9):
        case 0:
            return Mask(causal=True, alignment=rng.choice(["top-left", "bottom-right"]))
        case 1:
            return Mask(causal=rng.random() < 0.5, window=(rng.randrange(N), None))
        case 2:
            return Mask(allowed=torch.rand(B, 1, M, N, generator=g) < 0.5)
        case 3:
            bias = torch.randn(1, H, M, N, generator=g) * rng.choice([1, 30])
            return Mask(bias=bias.masked_fill(torch.rand(M, N, generator=g) < 0.2, -torch.inf).to(dtype))
        case 4:
            return Mask(key_lengths=torch.tensor([rng.randrange(N + 1) for _ in range(B)]))
    return Mask()


def draw_problem(seed: int) -> Problem:
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    HK = rng.choice([1, 2])
    sizes = rng.choice([1, 2, 17, 33, 64]), rng.choice([1, 2, 16, 33, 64, 130]), rng.choice([1, 8, 16, 64])
    shape = (rng.choice([1, 2]), HK * rng.choice([1, 2]), HK, *sizes)
    dtype, regime = rng.choice(DTYPES), rng.choice(REGIMES)
    mask = draw_mask(rng, shape, dtype, g)
    scale = rng.choice([1 / math.sqrt(sizes[2])] * 4 + [0.0, -0.2, 1.0])
    q, k, v, do = draw(regime, shape, dtype, g)
    return Problem(q, k, v, do, mask, scale)


def draw_kernel(rng: random.Random) -> Kernel:
    return Kernel(
        tile=rng.choice([16, 32, 64]),
        rounded=rng.random() < 0.6,
        sum_rounded=rng.random() < 0.5,
        delta=rng.choice(["output", "weights"]),
        lag=rng.choice([0.0, 8.0]),
        reverse=rng.random() < 0.3,
        parts=rng.choice([1, 2, 3]),
        base2=rng.random() < 0.7,
        truncate=rng.random() < 0.2,
        prescaled=rng.choice([0, 0, 1, 2]),
        flush=rng.random() < 0.3,
    )


def normal(dtype: torch.dtype, shape: tuple[int, ...] = (1, 4, 4, 96, 130, 64), mask: Mask | None = None) -> Problem:
    g = torch.Generator().manual_seed(0)
    q, k, v, do = draw("normal", shape, dtype, g)
    return Problem(q, k, v, do, mask or Mask(), 1 / math.sqrt(shape[-1]))


# ---- validity ----


@pytest.mark.parametrize("block", range(10))
def test_no_correct_kernel_violates(block: int) -> None:
    """Every bound covers what its arrangement describes; ANY covers everything that is finite."""
    for seed in range(100 * block, 100 * block + 100):
        problem, rng = draw_problem(seed), random.Random(seed)
        any_, flash = problem.bounds(ANY), problem.bounds(FLASH)
        plain = replace(draw_kernel(rng), rounded=True, sum_rounded=False, delta="output", lag=0, parts=1, prescaled=0)
        results = problem.kernel(plain)
        assert problem.within(results, flash), (seed, plain, problem.excess(results, flash))
        for kernel in (plain, draw_kernel(rng)):
            results = problem.kernel(kernel)
            assert problem.within(results, any_), (seed, kernel, problem.excess(results, any_))
        for softmax, arrangement in (("rounded", STANDARD), ("fp32", STANDARD_FP32)):
            results, bounds = problem.standard(softmax), problem.bounds(arrangement)  # type: ignore[arg-type]
            assert problem.within(results, bounds), (seed, softmax, problem.excess(results, bounds))
            if all(bool(x.isfinite().all()) for name, x in results.items() if name != "lse"):
                assert problem.within(results, any_), (seed, softmax, problem.excess(results, any_))


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_torch_does_not_violate(backend: SDPBackend) -> None:
    for seed in range(40):
        problem = draw_problem(1000 + seed)
        q, k, v = (x.clone().requires_grad_() for x in problem.tensors[:3])
        visible, bias = problem.mask.rows(0, q.shape[2], q.shape[2], k.shape[2], q.device)
        visible = visible.expand(*q.shape[:3], k.shape[2])
        if problem.scale < 0 or not bool(visible.any(-1).all()):
            continue  # torch has its own mind about empty rows, and takes the maximum before it scales
        extra = torch.zeros(visible.shape) if bias is None else bias.float().expand_as(visible)
        extra = extra.masked_fill(~visible, -torch.inf).to(q.dtype)
        groups = q.shape[1] // k.shape[1]
        with sdpa_kernel(backend):
            o = F.scaled_dot_product_attention(
                q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), extra, scale=problem.scale
            )
        o.backward(problem.do)
        assert q.grad is not None
        assert k.grad is not None
        assert v.grad is not None
        results = {"out": o.detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}
        bounds = problem.bounds(ANY)
        assert problem.within(results, bounds), (seed, problem.excess(results, bounds))


def cuda_gradient_of_softmax(p: Tensor, dp: Tensor) -> Tensor:
    """As torch's CUDA softmax has it: P * dP is rounded to the working dtype before it is summed and subtracted."""
    weighted = (p * dp).float()
    return (weighted - p.float() * weighted.sum(-1, keepdim=True)).to(p.dtype)


def test_torch_on_cuda_does_not_violate() -> None:
    """Where dP has a large common part, which delta takes away, rounding P * dP costs most.  Met on an H200."""
    case = Case(B=2, H=6, HK=3, M=5, N=5, D=40, dtype="fp16", regime="one-signed-v", seed=131747587, scale=0.07,
                layout="expanded")  # fmt: skip
    x = build(case)
    k, v = (y.repeat_interleave(2, 1) for y in (x.k, x.v))
    p = torch.softmax(x.q @ k.mT * case.scale, -1)
    ds = cuda_gradient_of_softmax(p, x.do @ v.mT) * case.scale
    problem = Problem(x.q, x.k, x.v, x.do, Mask(), case.scale)
    without = replace(ANY, weighted_dp_rounded=False)
    assert problem.excess({"dq": ds @ k}, problem.bounds(without))["dq"] > 1
    assert problem.excess({"dq": ds @ k}, problem.bounds(ANY))["dq"] < 1


# ---- sensitivity ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("fault", "tensors"),
    [
        ("last key dropped", NAMES),
        ("wrong scale", NAMES),
        ("row sum not rescaled", ("out", "lse")),
        ("output not rescaled", ("out",)),
        ("no delta", ("dq", "dk")),
    ],
)
@pytest.mark.parametrize("arrangement", [FLASH, ANY], ids=["flash", "any"])
def test_a_gross_fault_violates(
    fault: str, tensors: tuple[str, ...], dtype: torch.dtype, arrangement: Arrangement
) -> None:
    """The last key dominates, and the maximum rises from tile to tile: no fault of these is small."""
    problem = normal(dtype)
    k = problem.k.clone()
    k[:, :, -1] = problem.q[:, :, 0] * 0.6
    k[..., 0] = torch.linspace(-1.5, 1.5, k.shape[2]).to(dtype)
    q, v = problem.q.clone(), problem.v.clone()
    q[..., 0], v[:, :, -1] = 8.0, 4.0
    problem = Problem(q, k, v + 2, problem.do + 1, Mask(), problem.scale)
    bounds = problem.bounds(arrangement)
    assert problem.within(problem.kernel(Kernel()), bounds)
    excess = problem.excess(problem.kernel(Kernel(fault=fault)), bounds)
    assert all(excess[name] > 1 for name in tensors), excess


def test_rounded_scores_violate_what_flash_promises() -> None:
    """With large logits the bound of FLASH excludes scores kept in half precision, that of ANY does not."""
    for dtype in DTYPES[:2]:
        p = normal(dtype)
        p = Problem(p.q * 16, p.k, p.v, p.do, p.mask, p.scale)
        results = p.standard("rounded")
        assert all(x > 1 for x in p.excess(results, p.bounds(FLASH)).values())
        assert p.within(results, p.bounds(ANY))


def test_a_leaking_mask_violates() -> None:
    problem = normal(torch.float16, mask=Mask(causal=True))
    excess = problem.excess(problem.kernel(Kernel(fault="causal off by one")), problem.bounds(ANY))
    assert all(x > 1 for x in excess.values()), excess


def test_what_nobody_sees_must_be_exact() -> None:
    """Bound 0: a gradient of 1e-30 for a hidden key, or an output for an empty row, is a fault."""
    mask = Mask(key_lengths=torch.tensor([100]), allowed=(torch.arange(96) != 7)[:, None])
    problem = normal(torch.float16, mask=mask)
    bounds = problem.bounds(ANY)
    assert bounds.dk is not None
    assert bounds.dv is not None
    assert (bounds.dk[:, :, 100:] == 0).all()
    assert (bounds.dv[:, :, 100:] == 0).all()
    assert (bounds.out[:, :, 7] == 0).all()
    assert (bounds.lse[:, :, 7] == 0).all()
    results = problem.kernel(Kernel())
    assert problem.within(results, bounds)
    for name in ("dk", "dv"):
        bad = results[name].clone()
        bad[0, 0, 120, 3] = 2.0**-24
        assert not problem.within(results | {name: bad}, bounds)
    bad = results["out"].clone()
    bad[0, 0, 7] = math.nan
    assert not problem.within(results | {"out": bad}, bounds)


def test_overflow_is_excused_only_where_every_kernel_may() -> None:
    """fp16 results beyond 65504 have no bound; scores beyond it bound only what keeps scores in fp16."""
    q = torch.full((1, 1, 2, 256), 16.0, dtype=torch.float16)  # q . k = 65536
    v = torch.ones_like(q)
    v[..., 1] = 65504.0
    problem = Problem(q, q, v, v / 4096, Mask(), 1 / 16)
    any_, eager = problem.bounds(ANY), problem.bounds(STANDARD)
    assert all(bool(getattr(eager, name).isinf().all()) for name in NAMES)
    assert any_.out.isinf().any(dim=(0, 1, 2)).tolist() == [False, True] + [False] * 254
    assert any_.lse.isfinite().all()
    assert problem.within(problem.kernel(Kernel()), any_)
    v = torch.cat((torch.full_like(q, 200.0)[:, :, :1], -torch.full_like(q, 200.0)[:, :, 1:]), 2)
    problem = Problem(q / 256, q / 256, v, torch.full_like(q, 3.0), Mask(), 1 / 16)  # dS = 0.5 * 153600 > 65504
    bounds = problem.bounds(FLASH)
    assert bounds.dq is not None
    assert bounds.dv is not None
    assert bounds.dq.isinf().all()
    assert bounds.dv.isfinite().all()
    assert problem.kernel(Kernel())["dq"].isnan().any()


def test_bounds_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = normal(torch.bfloat16, (2, 4, 2, 33, 40, 16), Mask(causal=True, window=(9, None)))
    args = (*problem.tensors, problem.mask, problem.scale)
    whole = problem.bounds(ANY), predict(*args, ANY, problem.truth, problem.gradients)
    scales = natural_scales(*args, problem.truth)
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 8 * 2 * 4 * 40 * 5)
    b = blocks.blocks(*(x.double() for x in problem.tensors), problem.mask, problem.scale, problem.truth)
    assert len(list(b)) == 7
    parts = problem.bounds(ANY), predict(*args, ANY, problem.truth, problem.gradients)
    again = natural_scales(*args, problem.truth)
    for name in NAMES:
        torch.testing.assert_close(getattr(parts[0], name), getattr(whole[0], name), rtol=1e-12, atol=0)
    for name in ("out", "dq", "dk", "dv"):
        assert getattr(parts[1], name) == pytest.approx(getattr(whole[1], name), rel=1e-12)
        torch.testing.assert_close(getattr(again, name), getattr(scales, name), rtol=1e-12, atol=0)


def test_forward_alone() -> None:
    p = normal(torch.float16)
    bounds = certify(p.q, p.k, p.v, None, p.mask, p.scale, ANY, p.truth, None)
    assert torch.equal(bounds.out, p.bounds(ANY).out)
    assert bounds.dq is None
    predicted = predict(p.q, p.k, p.v, None, p.mask, p.scale, FLASH, p.truth, None)
    assert predicted.out == predict(*p.tensors, p.mask, p.scale, FLASH, p.truth, p.gradients).out
    assert natural_scales(p.q, p.k, p.v, None, p.mask, p.scale, p.truth).dv is None
    with pytest.raises(ValueError, match="both do and gradients"):
        certify(p.q, p.k, p.v, p.do, p.mask, p.scale, ANY, p.truth, None)
    with pytest.raises(KeyError):
        certify(p.q.double(), p.k, p.v, None, p.mask, p.scale, ANY, p.truth, None)


@pytest.mark.parametrize(("m", "n"), [(0, 5), (5, 0)])
def test_no_queries_or_no_keys(m: int, n: int) -> None:
    problem = normal(torch.float16, (1, 2, 1, m, n, 4))
    bounds = problem.bounds(ANY)
    assert all(bool((getattr(bounds, name) == 0).all()) for name in NAMES)
    predict(*problem.tensors, problem.mask, problem.scale, ANY, problem.truth, problem.gradients)


# ---- predictors ----


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(("regime", "scale"), [("normal", 0.2), ("normal", 0.8), ("uniform", 0.2), ("offset", 0.2)])
@pytest.mark.parametrize("causal", [False, True])
def test_predicted_rms(dtype: torch.dtype, regime: str, scale: float, causal: bool) -> None:
    """Within 20 % of what is observed on independently drawn inputs, for flash and both standards."""
    g = torch.Generator().manual_seed(3)
    q, k, v, do = draw(regime, (1, 4, 4, 100, 120, 32), dtype, g)
    p = Problem(q, k, v, do, Mask(causal=causal), scale)
    runs = [(p.kernel(Kernel()), FLASH), (p.standard("fp32"), STANDARD_FP32)]
    if regime == "normal":  # elsewhere, many scores round to the same few values: coherent
        runs.append((p.standard("rounded"), STANDARD))
    for results, arrangement in runs:
        predicted = predict(*p.tensors, p.mask, p.scale, arrangement, p.truth, p.gradients)
        for name in ("out", "dq", "dk", "dv"):
            observed = float((results[name].double() - p.exact()[name]).square().mean().sqrt())
            assert 0.8 < observed / getattr(predicted, name) < 1.2, (arrangement.name, name)


def test_predictor_notices_what_bounds_cannot() -> None:
    """Scores rounded to fp16 stay inside the bound of ANY, but make more error than FLASH predicts."""
    p = normal(torch.float16, mask=Mask(causal=True))
    p = Problem(p.q * 2, p.k, p.v, p.do, p.mask, p.scale)
    results, predicted = (
        p.standard("rounded"),
        predict(*p.tensors, p.mask, p.scale, FLASH, p.truth, p.gradients),
    )
    assert p.within(results, p.bounds(ANY))
    for name in ("out", "dq", "dk", "dv"):
        assert float((results[name].double() - p.exact()[name]).square().mean().sqrt()) > 1.3 * getattr(predicted, name)


def test_natural_scales() -> None:
    p = normal(torch.float16, (1, 4, 2, 9, 11, 8), Mask(causal=True, alignment="bottom-right"))
    scales = natural_scales(*p.tensors, p.mask, -0.3, forward(p.q, p.k, p.v, p.mask, -0.3))
    q, do = p.q.double(), p.do.double()
    k, v = (x.double().repeat_interleave(2, 1) for x in (p.k, p.v))
    s = (-0.3 * q @ k.mT).masked_fill(~p.mask.rows(0, 9, 9, 11, q.device)[0], -torch.inf)
    w, dp = torch.softmax(s, -1), do @ v.mT
    ds = 0.3 * w * (dp.abs() + (w * dp.abs()).sum(-1, keepdim=True))
    sizes = {"out": w @ v.abs(), "dq": ds @ k.abs(), "dk": ds.mT @ q.abs(), "dv": w.mT @ do.abs()}
    for name, size in sizes.items():
        want = size if size.shape[2] == 9 else size.view(1, 2, 2, 11, 8).sum(2)
        torch.testing.assert_close(getattr(scales, name), want, rtol=1e-12, atol=1e-14)
