"""False conjectures are refuted, and the counterexample is shown."""

from __future__ import annotations

import contextlib

import pytest

from whet.rewrite.conjecture import Conjecture, Form, Statement
from whet.rewrite.prove import derive, prove
from whet.rewrite.reading import Unreadable
from whet.rewrite.refute import refute
from whet.rewrite.rule import Proof, Refutation, Unknown

TABLE = """
merge grouped convs: (conv2d(x[N, G*C, H, W], w.i[G*O.i, C, R, Q], groups=G, stride=S, padding=p, dilation=D) for i in range(M)) == (slice(conv2d(x, concat(*(w.j for j in range(M)), axis=0), groups=G, stride=S, padding=p, dilation=D), 1, G*sum(O.j for j in range(i)), G*sum(O.j for j in range(i + 1)), 1) for i in range(M))
matmul commutes: matmul(x[K, K], y[K, K]) == matmul(y, x)
fold batch norm past relu: batch_norm(relu(conv2d(x[N, C, H, W], w[O, C, R, Q], groups=1, stride=S, padding=p, dilation=D)), m[O], v[O], g[O], b[O], eps=e) == relu(conv2d(x, w * reshape(k := g * rsqrt(v + e), size=(O, 1, 1, 1)), b - m * k, groups=1, stride=S, padding=p, dilation=D))
pad with ones: conv2d(pad(x[N, C, H, W], 2, 1, 1, 1.0), w[O, C, R, Q], groups=1, stride=S, padding=(0, 0), dilation=D) == conv2d(x, w, groups=1, stride=S, padding=(1, 0), dilation=D)
pad on one side: conv2d(pad(x[N, C, H, W], 2, 0, 2, 0.0), w[O, C, R, Q], groups=1, stride=S, padding=(0, 0), dilation=D) == conv2d(x, w, groups=1, stride=S, padding=(1, 0), dilation=D)
flip and cumsum: cumsum(flip(x[M, N], 1), 1) == flip(cumsum(x, 1), 1)
softmax over the other axis: softmax(x[K, K], 0) == softmax(x, 1)
merge convs of two strides: (conv2d(x[N, C, H, W], w[O, C, R, Q], groups=1, stride=(1, 1), padding=p, dilation=D), conv2d(x, v[P, C, R, Q], groups=1, stride=(2, 2), padding=p, dilation=D)) == (slice(y := conv2d(x, concat(w, v, axis=0), groups=1, stride=(1, 1), padding=p, dilation=D), 1, 0, O, 1), slice(y, 1, O, O + P, 1))
stride by slicing from 1: conv2d(x[N, C, 2*H, W], w[O, C, 1, 1], groups=1, stride=(2, 1), padding=(0, 0), dilation=(1, 1)) == slice(conv2d(x, w, groups=1, stride=(1, 1), padding=(0, 0), dilation=(1, 1)), 2, 1, 2*H, 2)
transpose of a product: permute(matmul(x[K, K], y[K, K]), dims=(1, 0)) == matmul(permute(x, dims=(1, 0)), permute(y, dims=(1, 0)))
relu before pooling: avg_pool2d(relu(x[N, C, H, W]), kernel=(2, 2), stride=(1, 1), padding=(0, 0), extra=(0, 0), include_padding=True) == relu(avg_pool2d(x, kernel=(2, 2), stride=(1, 1), padding=(0, 0), extra=(0, 0), include_padding=True))
negation before pooling: max_pool2d(-x[N, C, H, W], kernel=(2, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), extra=(0, 0)) == -max_pool2d(x, kernel=(2, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1), extra=(0, 0))
slice of concat, off by one: slice(concat(x[M, *B], y[M, *B], axis=0), 0, 1, M + 1, 1) == x
relu before linear: relu(linear(x[*B, K], w[O, K])) == linear(relu(x), w)
attention unscaled: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))), -1) @ v[B, H, M, E] == attention(q, k, v, None, 0.5, False, 1)
norm scale without bias: linear(layer_norm(x[*B, K], g[K], b[K], size=(K,), eps=e), w[O, K]) == linear(layer_norm(x, None, None, size=(K,), eps=e), w * g)
exponential of a sum: exp(x[*B] + y[*B]) == exp(x) + exp(y)
transpose by reshape: reshape(permute(x[M, N], dims=(1, 0)), size=(M, N)) == x
sum of maxima either way: sum(amax(x[K, K], dims=(1,)), dims=(0,)) == sum(amax(x, dims=(0,)), dims=(0,))
mean of means: mean(mean(x[M, N], dims=(1,)), dims=(0,)) == mean(x, dims=(0, 1)) * 2
rope by adding: x[*B, 2*D] * c[2*D] + concat(slice(x, -1, D, 2*D, 1), slice(x, -1, 0, D, 1), axis=-1) * s[2*D] == rope(x, c, s)
"""


def form_of(text: str) -> Form:
    """Families are two wide, groups of rank one."""
    c = Conjecture(text)
    width = 2 if c.width_name else 0
    return Form(width, tuple((g, 1) for g in c.sides(width).groups))


FALSE = [(t, form_of(t)) for t in TABLE.strip().splitlines()]


@pytest.mark.parametrize(("text", "form"), FALSE, ids=[t.partition(":")[0] for t, _ in FALSE])
def test_refuted_with_a_counterexample(text: str, form: Form) -> None:
    verdict = prove(text, form)
    assert isinstance(verdict, Refutation)
    shown = str(verdict)
    assert "is false at" in shown
    assert "!=" in shown
    assert text.split(":")[0] in shown


@pytest.mark.parametrize(("text", "form"), FALSE, ids=[t.partition(":")[0] for t, _ in FALSE])
def test_never_derived(text: str, form: Form) -> None:
    """The normal forms alone, without the refuter before them, prove nothing false."""
    with contextlib.suppress(Unreadable):
        assert not isinstance(derive(Statement(Conjecture(text), form)), Proof)


def test_the_counterexample_says_where_and_what() -> None:
    found = prove("matmul commutes: matmul(x[K, K], y[K, K]) == matmul(y, x)")
    assert isinstance(found, Refutation)
    c = found.counterexample
    assert c.index is not None
    assert len(c.index) == 2
    assert c.left != c.right
    assert c.ring == "modulo 2**31 - 1"
    assert f"element {list(c.index)} of output 0" in str(found)


def test_real_functions_are_taken_in_float64() -> None:
    found = prove("log of product: log(x[N] * y[N]) == log(x) * log(y)")
    assert isinstance(found, Refutation)
    assert found.counterexample.ring == "in float64"


def test_types_refute_too() -> None:
    found = prove("no transpose: permute(x[M, N], dims=(1, 0)) == x")
    assert isinstance(found, Refutation)


def test_reading_outside_is_no_equality() -> None:
    found = prove("beyond: x[N] == slice(x, 0, 0, N + 1, 1)")
    assert isinstance(found, Refutation)


def test_a_left_side_that_does_not_exist_is_unknown() -> None:
    found = prove("impossible: x[N] + 0 == x if N < 0")
    assert isinstance(found, Unknown)
    assert "no sizes" in found.reason


def test_true_only_of_keyed_maps_is_not_refuted() -> None:
    """What the laws do not reach is unknown: no mismatch of opaque functions refutes it."""
    found = prove("squares: sin(x[N]) * sin(x) + cos(x) * cos(x) == 0 * x + 1")
    assert isinstance(found, Unknown)


def test_draws_are_the_same_every_time() -> None:
    s = Statement(Conjecture("swap: x[M, N] - y[M, N] == y - x"))
    assert str(refute(s)[0]) == str(refute(s)[0])
