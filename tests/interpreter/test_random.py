"""Random numbers: Philox4x32-10 (Salmon et al. 2011) as Triton calls it."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

#: kat_vectors of the Random123 distribution, philox4x32 10: counter, key, result
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def signed(x, bits):
    return x - (1 << bits) if x >> (bits - 1) else x


@pytest.mark.covers("tl.philox", note="the published vectors: zeros, ones, digits of pi")
@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_known_answers(counter, key, want):
    out = torch.zeros(4, dtype=torch.int32)
    seed = torch.tensor([signed(key[0] | key[1] << 32, 64)])
    counters = torch.tensor([signed(c, 32) for c in counter], dtype=torch.int32)
    from_memory[(1,)](out, seed, counters)
    assert [v & 0xFFFFFFFF for v in out.tolist()] == want


@triton.jit
def from_memory(out, seed, counters):
    c0, c1, c2, c3 = tl.load(counters), tl.load(counters + 1), tl.load(counters + 2), tl.load(counters + 3)
    a, b, c, d = tl.philox(tl.load(seed).to(tl.uint64), c0, c1, c2, c3)
    tl.store(out + 0, a.to(tl.int32, bitcast=True))
    tl.store(out + 1, b.to(tl.int32, bitcast=True))
    tl.store(out + 2, c.to(tl.int32, bitcast=True))
    tl.store(out + 3, d.to(tl.int32, bitcast=True))


def philox(seed, counter):
    """The first word of Philox4x32-10, in Python's integers."""
    key, c = [seed & 0xFFFFFFFF, seed >> 32], [counter, 0, 0, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ key[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ key[1], a & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[0]


@triton.jit
def draw(out, seed, KIND: tl.constexpr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    if KIND == "rand":
        tl.store(out + i, tl.rand(seed, i))
    elif KIND == "randn":
        tl.store(out + i, tl.randn(seed, i))
    else:
        tl.store(out + i, tl.randint(seed, i))


@pytest.mark.covers("tl.randint, tl.rand, tl.randn")
def test_randint_and_rand():
    whole, real = torch.zeros(256, dtype=torch.int32), torch.zeros(256)
    draw[(4,)](whole, 0x1234567, KIND="randint", N=64)
    want = [philox(0x1234567, i) for i in range(256)]
    assert [v & 0xFFFFFFFF for v in whole.tolist()] == want
    draw[(4,)](real, 0x1234567, KIND="rand", N=64)
    scale = 4.6566127342e-10  # Triton's, a little below 2^-31
    folded = torch.tensor([-signed(v, 32) - 1 if v >> 31 else v for v in want], dtype=torch.int32)
    assert torch.equal(real, folded.float() * scale)
    assert real.min() >= 0
    assert real.max() < 1


@pytest.mark.covers("tl.randint, tl.rand, tl.randn", note="normal by Box and Muller")
def test_randn_is_normal():
    out = torch.zeros(1 << 16)
    draw[(64,)](out, 7, KIND="randn", N=1024)
    # 5 standard errors of the mean, of the variance and of the share within one standard deviation
    assert out.mean().abs() < 5 / 256
    assert (out.var() - 1).abs() < 5 * 2**0.5 / 256
    assert ((out.abs() < 1).double().mean() - 0.682689).abs() < 5 * (0.6827 * 0.3173) ** 0.5 / 256


@triton.jit
def dropout(x, out, n, p, seed, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    keep = tl.rand(seed, i) > p
    tl.store(out + i, tl.where(keep, tl.load(x + i, mask=i < n) / (1 - p), 0.0), mask=i < n)


@pytest.mark.covers("tl.randint, tl.rand, tl.randn", note="seeded dropout repeats itself")
def test_dropout():
    x, a, b = torch.ones(1000), torch.zeros(1000), torch.zeros(1000)
    dropout[(4,)](x, a, 1000, 0.25, 3, BLOCK=256)
    dropout[(8,)](x, b, 1000, 0.25, 3, BLOCK=128)
    assert torch.equal(a, b)
    assert set(a.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


@triton.jit
def four(out, seed, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c, d = tl.rand4x(seed, i)
    tl.store(out + i, a + b + c + d)
    p, q, r, s = tl.randn4x(seed, i)
    tl.store(out + N + i, p + q + r + s)
    e, f, g, h = tl.randint4x(seed, i)
    tl.store(out + 2 * N + i, (e ^ f ^ g ^ h).to(tl.float32))


@pytest.mark.covers("tl.rand4x, tl.randn4x, tl.randint4x")
def test_four_at_once():
    out = torch.zeros(3, 64)
    four[(1,)](out, 5, N=64)
    assert ((out[0] > 0) & (out[0] < 4)).all()
    assert out.isfinite().all()
    assert out[1].unique().numel() == 64
