"""Laws of functions, fast products and convolutions: what the normal form must see through."""

from __future__ import annotations

import pytest

from whet.rewrite.prove import prove
from whet.rewrite.rule import Refutation, Rule

_WINDOW = "stride=(1, 1), padding=(0, 0), dilation=(1, 1), extra=(0, 0)"
# ruff: noqa: E501
TRUE = f"""
relu is homogeneous: relu(2.0 * x[N]) == 2.0 * relu(x)
relu by cases: where(gt(x[N], 0), x, 0 * x) == relu(x)
relu squared: relu(x[N]) * relu(x) == x * relu(x)
relu and abs: relu(x[N]) == 0.5 * (x + abs(x))
plus distributes over maximum: maximum(x[N], y[N]) + c[N] == maximum(x + c, y + c)
maxima associate: maximum(maximum(x[N], y[N]), z[N]) == maximum(x, maximum(y, z))
maximum and minimum: maximum(x[N], y[N]) + minimum(x, y) == x + y
minimum by maximum: minimum(x[N], y[N]) == -maximum(-x, -y)
exp of a sum: exp(x[N] + y[N]) == exp(x) * exp(y)
log of exp: log(exp(x[N])) == x
sigmoid from exp: sigmoid(x[N]) == 1.0 / (1.0 + exp(-x))
sigmoid of minus: sigmoid(-x[N]) == 1.0 - sigmoid(x)
tanh from sigmoid: tanh(x[N]) == 2.0 * sigmoid(2.0 * x) - 1.0
tanh from exp: tanh(x[N]) == (exp(2.0 * x) - 1) / (exp(2.0 * x) + 1)
exp of log: exp(logsumexp(x[M, N], 1)) == sum(exp(x), dims=(1,))
softplus: log(1.0 + exp(-x[N])) == log(1.0 + exp(x)) - x
root of a multiple: sqrt(4.0 * x[N] + 4.0 * y[N]) == 2.0 * sqrt(x + y)
shares of a whole: sum(softmax(x[M, N], 1), dims=(1,)) == full(size=(M,), value=1.0)
maximum of powers: maximum(exp(x[N]), exp(y[N])) == exp(maximum(x, y))
lattice: maximum(x[N], minimum(y[N], z[N])) == minimum(maximum(x, y), maximum(x, z))
absolute product: abs(x[N] * y[N]) == abs(x) * abs(y)
clamped twice: clamp(clamp(x[M, N], low=0.0, high=6.0), low=0.0, high=6.0) == clamp(x, low=0.0, high=6.0)
the other way round: flip(conv1d(x[N, C, H], w[O, C, R], groups=1, stride=(1,), padding=(0,), dilation=(1,)), axis=2) == conv1d(flip(x, axis=2), flip(w, axis=2), groups=1, stride=(1,), padding=(0,), dilation=(1,))
padded behind: pad(x[M, K], axis=1, before=0, after=3, value=0.0) == concat(x, full(size=(M, 3), value=0.0), axis=1)
softmax shift: softmax(x[M, N] + y[M, 1], 1) == softmax(x, 1)
softmax unshifted: softmax(x[M, N], 1) == exp(x) / reshape(sum(exp(x), dims=(1,)), size=(M, 1))
log of softmax: log_softmax(x[M, N], 1) == log(softmax(x, 1))
logsumexp unshifted: logsumexp(x[M, N], 1) == log(sum(exp(x), dims=(1,)))
logsumexp nested: logsumexp(logsumexp(x[M, N], 1), 0) == logsumexp(logsumexp(x, 0), 0)
maximum of a shift: amax(x[M, N] + y[M, 1], dims=(1,)) == amax(x, dims=(1,)) + reshape(y, size=(M,))
variance: mean(square(x[M, K] - reshape(mean(x, dims=(1,)), size=(M, 1))), dims=(1,)) == mean(square(x), dims=(1,)) - square(mean(x, dims=(1,)))
layer norm by squares: layer_norm(x[M, K], None, None, size=(K,), eps=e) == (x - reshape(m := mean(x, dims=(1,)), size=(M, 1))) * rsqrt(reshape(mean(square(x), dims=(1,)) - square(m), size=(M, 1)) + e)
online softmax: matmul(softmax(concat(x[M, N], y[M, P], axis=1), 1), concat(u[N, D], v[P, D], axis=0)) == (exp(reshape((p := amax(x, dims=(1,))) - (m := maximum(p, q := amax(y, dims=(1,)))), size=(M, 1))) * matmul(exp(x - reshape(p, size=(M, 1))), u) + exp(reshape(q - m, size=(M, 1))) * matmul(exp(y - reshape(q, size=(M, 1))), v)) / reshape(exp(p - m) * sum(exp(x - reshape(p, size=(M, 1))), dims=(1,)) + exp(q - m) * sum(exp(y - reshape(q, size=(M, 1))), dims=(1,)), size=(M, 1))
relu of a pool: relu(max_pool2d(x[N, C, H, W], kernel=(2, 2), {_WINDOW})) == max_pool2d(relu(x), kernel=(2, 2), {_WINDOW})
pool of a pool: max_pool2d(max_pool2d(x[N, C, H, W], kernel=(2, 2), {_WINDOW}), kernel=(2, 2), {_WINDOW}) == max_pool2d(x, kernel=(3, 3), {_WINDOW})
mean as a convolution: avg_pool2d(x[N, C, H, W], kernel=(3, 2), stride=S, padding=P, extra=(0, 0), include_padding=1) == conv2d(x, full(size=(C, 1, 3, 2), value=1.0) / 6, groups=C, stride=S, padding=P, dilation=(1, 1))
mean over any windows: avg_pool2d(x[N, C, H, W], kernel=(R, Q), stride=(S, T), padding=(p, q), extra=(0, 0), include_padding=1) == conv2d(x, full(size=(C, 1, R, Q), value=1.0) / (R*Q), groups=C, stride=(S, T), padding=(p, q), dilation=(1, 1))
minimum of a function: minimum(tanh(x[N]), tanh(y[N])) == tanh(minimum(x, y))
maximum of a function that is turned: amax(-sigmoid(x[M, N]), dims=(1,)) == -sigmoid(amin(x, dims=(1,)))
maximum of a power and a shift: amax(exp(x[M, N] + y[M, 1]), dims=(1,)) == exp(amax(x, dims=(1,)) + reshape(y, size=(M,)))
function of a pool: sigmoid(max_pool2d(x[N, C, H, W], kernel=(R, Q), stride=(S, T), padding=(0, 0), dilation=(1, 1), extra=(0, 0))) == max_pool2d(sigmoid(x), kernel=(R, Q), stride=(S, T), padding=(0, 0), dilation=(1, 1), extra=(0, 0))
power of a negative logarithm: exp(x[M, N] - reshape(logsumexp(x, 1), size=(M, 1))) == softmax(x, 1)
weighed shares: matmul(softmax(x[M, K], 1), v[K, N] + c[N]) == matmul(softmax(x, 1), v) + c
identity matrix: matmul(x[M, K], tril(triu(full(size=(K, K), value=1.0), 0), 0)) == x
Winograd: conv1d(x[1, 1, 4], w[1, 1, 3], groups=1, stride=(1,), padding=(0,), dilation=(1,)) == reshape([[1, 1, 1, 0], [0, 1, -1, -1]] @ (([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]] @ reshape(w, size=(3, 1))) * ([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]] @ reshape(x, size=(4, 1)))), size=(1, 1, 2))
"""
FALSE = """
relu is linear: relu(x[N] + y[N]) == relu(x) + relu(y)
relu of minus: relu(-2.0 * x[N]) == -2.0 * relu(x)
times distributes over maximum: maximum(x[N], y[N]) * c[N] == maximum(x * c, y * c)
maximum of different functions: maximum(tanh(x[N]), sigmoid(y[N])) == tanh(maximum(x, y))
maximum of multiples: maximum(tanh(x[N]), 2.0 * tanh(y[N])) == 2.0 * tanh(maximum(x, y))
maximum of cosines: maximum(cos(x[N]), cos(y[N])) == cos(maximum(x, y))
weighed shares of another whole: matmul(exp(x[M, K]), v[K, N] + c[N]) == matmul(exp(x), v) + c
sigmoid is odd: sigmoid(-x[N]) == -sigmoid(x)
maximum of negative powers: maximum(exp(-x[N]), exp(-y[N])) == exp(-maximum(x, y))
clamped elsewhere: clamp(clamp(x[N], low=0.0, high=6.0), low=1.0, high=6.0) == clamp(x, low=0.0, high=6.0)
padded with ones: pad(x[M, K], axis=1, before=0, after=3, value=1.0) == pad(x, axis=1, before=0, after=3, value=0.0)
softmax along the other axis: softmax(x[M, N] + y[1, N], 1) == softmax(x, 1)
log of a sum: log(exp(x[N]) + exp(y[N])) == x + y
pool of a larger pool: max_pool1d(max_pool1d(x[N, C, H], kernel=(2,), stride=(1,), padding=(0,), dilation=(1,), extra=(0,)), kernel=(2,), stride=(2,), padding=(0,), dilation=(1,), extra=(0,)) == max_pool1d(x, kernel=(3,), stride=(1,), padding=(0,), dilation=(1,), extra=(0,))
"""


def quarter(t: str, i: int, j: int) -> str:
    rows, columns = ("M", "K") if t == "x" else ("K", "N")
    inner = f"slice({t}, 0, {i}*{rows}, {i + 1}*{rows}, 1)"
    return f"slice({inner}, 1, {j}*{columns}, {j + 1}*{columns}, 1)"


def strassen(last: str = "+") -> str:
    """One level of Strassen's product of matrices."""
    (a, b), (c, d) = [[quarter("x", i, j) for j in range(2)] for i in range(2)]
    (e, f), (g, h) = [[quarter("y", i, j) for j in range(2)] for i in range(2)]
    m = [f"matmul({p}, {q})" for p, q in (
        (f"{a} + {d}", f"{e} + {h}"), (f"{c} + {d}", e), (a, f"{f} - {h}"), (d, f"{g} - {e}"),
        (f"{a} + {b}", h), (f"{c} - {a}", f"{e} + {f}"), (f"{b} - {d}", f"{g} + {h}"),
    )]  # fmt: skip
    top = f"concat({m[0]} + {m[3]} - {m[4]} + {m[6]}, {m[2]} + {m[4]}, axis=1)"
    bottom = f"concat({m[1]} + {m[3]}, {m[0]} - {m[1]} + {m[2]} {last} {m[5]}, axis=1)"
    return f"Strassen: matmul(x[2*M, 2*K], y[2*K, 2*N]) == concat({top}, {bottom}, axis=0)"


@pytest.mark.parametrize("text", [x for x in TRUE.splitlines() if x], ids=lambda t: t.split(":")[0])
def test_true_laws_are_proven(text: str) -> None:
    found = prove(text)
    assert isinstance(found, Rule), str(found)
    assert found.proof.coverage == "all-shapes"


@pytest.mark.parametrize(
    "text", [x for x in FALSE.splitlines() if x], ids=lambda t: t.split(":")[0]
)
def test_false_laws_are_refuted(text: str) -> None:
    assert isinstance(prove(text), Refutation)


def test_a_level_of_strassen() -> None:
    assert isinstance(prove(strassen()), Rule)
    assert isinstance(prove(strassen("-")), Refutation)


def test_a_maximum_over_nothing_is_none_of_a_functions_values() -> None:
    """A window that lies in the padding alone has -inf, whatever is done to numbers before."""
    pool = "max_pool1d({}, kernel=(1,), stride=(1,), padding=(1,), dilation=(1,), extra=(0,))"
    text = f"sigmoid({pool.format('x[N, C, H]')}) == {pool.format('sigmoid(x)')}"
    assert not isinstance(prove(f"padded: {text}"), Rule)
