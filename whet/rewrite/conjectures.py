"""The conjectures that whet ships: each one line, none trusted, all proven before use.

They are read from left to right. Whether a rewrite pays is for a cost to say; what stands here is
only that it is allowed. The notation is that of `whet.rewrite.conjecture`.
"""

from __future__ import annotations

from collections.abc import Mapping

from whet.rewrite.conjecture import Conjecture

_CONV = "groups=G, stride=S, padding=p, dilation=D"
_CONV1 = "groups=1, stride=S, padding=p, dilation=D"
_X = "x[N, G*C, H, W]"
_W = "w[G*O, C, R, Q]"
_BEFORE = "sum(O.j for j in range(i))"
_AFTER = "sum(O.j for j in range(i + 1))"
_ALL = "for i in range(M)"

# fmt: off
_LINES = f"""
-- folding: what follows or precedes a matrix product or a convolution goes into its weights
fold batch norm into conv: batch_norm(conv2d({_X}, {_W}, {_CONV}), m[G*O], v[G*O], g[G*O], b[G*O], eps=e) == conv2d(x, w * reshape(k := g * rsqrt(v + e), size=(G*O, 1, 1, 1)), b - m * k, {_CONV})
fold batch norm into conv with bias: batch_norm(conv2d({_X}, {_W}, c[G*O], {_CONV}), m[G*O], v[G*O], g[G*O], b[G*O], eps=e) == conv2d(x, w * reshape(k := g * rsqrt(v + e), size=(G*O, 1, 1, 1)), (c - m) * k + b, {_CONV})
fold batch norm into linear: batch_norm(linear(x[N, K], w[O, K]), m[O], v[O], g[O], b[O], eps=e) == linear(x, w * reshape(k := g * rsqrt(v + e), size=(O, 1)), b - m * k)
fold batch norm into linear with bias: batch_norm(linear(x[N, K], w[O, K], c[O]), m[O], v[O], g[O], b[O], eps=e) == linear(x, w * reshape(k := g * rsqrt(v + e), size=(O, 1)), (c - m) * k + b)
fold plain batch norm into conv: batch_norm(conv2d({_X}, {_W}, {_CONV}), m[G*O], v[G*O], None, None, eps=e) == conv2d(x, w * reshape(k := rsqrt(v + e), size=(G*O, 1, 1, 1)), -m * k, {_CONV})
batch norm is affine: batch_norm(x[N, C, H, W], m[C], v[C], g[C], b[C], eps=e) == x * reshape(k := g * rsqrt(v + e), size=(C, 1, 1)) + reshape(b - m * k, size=(C, 1, 1))
fold scale after linear: linear(x[*B, K], w[O, K]) * s[()] == linear(x, w * s)
fold scale after linear with bias: linear(x[*B, K], w[O, K], c[O]) * s[()] == linear(x, w * s, c * s)
fold scale before linear: linear(x[*B, K] * s[()], w[O, K], c[O] or None) == linear(x, w * s, c)
fold channel scale before linear: linear(x[*B, K] * s[K], w[O, K], c[O] or None) == linear(x, w * s, c)
fold channel scale after linear: linear(x[*B, K], w[O, K]) * s[O] == linear(x, w * reshape(s, size=(O, 1)))
fold channel scale after conv: conv2d({_X}, {_W}, {_CONV}) * s[G*O, 1, 1] == conv2d(x, w * reshape(s, size=(G*O, 1, 1, 1)), {_CONV})
fold norm scale into linear: linear(layer_norm(x[*B, K], g[K], b[K], size=(K,), eps=e), w[O, K], c[O]) == linear(layer_norm(x, None, None, size=(K,), eps=e), w * g, linear(b, w, c))
fold rms scale into linear: linear(rms_norm(x[*B, K], g[K], size=(K,), eps=e), w[O, K], c[O] or None) == linear(rms_norm(x, None, size=(K,), eps=e), w * g, c)
fold scales: x[*B] * s[()] * t[()] == x * (s * t)
bias of linear: linear(x[*B, K], w[O, K]) + c[O] == linear(x, w, c)
biases of linear: linear(x[*B, K], w[O, K], c[O]) + d[O] == linear(x, w, c + d)
bias of matmul: matmul(x[*B, M, K], w[K, O]) + c[O] == linear(x, permute(w, dims=(1, 0)), c)
bias of conv: conv2d({_X}, {_W}, {_CONV}) + c[G*O, 1, 1] == conv2d(x, w, reshape(c, size=(G*O,)), {_CONV})
padding into conv: conv2d(pad(pad({_X}, 2, A, A, 0.0), 3, E, E, 0.0), {_W}, c[G*O] or None, groups=G, stride=S, padding=(0, 0), dilation=D) == conv2d(x, w, c, groups=G, stride=S, padding=(A, E), dilation=D)

-- merging: products that share an operand become one
merge linears: (linear(x[*B, K], w.i[O.i, K]) {_ALL}) == (slice(linear(x, concat(*(w.j for j in range(M)), axis=0)), -1, {_BEFORE}, {_AFTER}, 1) {_ALL})
merge linears with bias: (linear(x[*B, K], w.i[O.i, K], c.i[O.i]) {_ALL}) == (slice(linear(x, concat(*(w.j for j in range(M)), axis=0), concat(*(c.j for j in range(M)), axis=0)), -1, {_BEFORE}, {_AFTER}, 1) {_ALL})
merge matmuls: (matmul(x[*B, L, K], w.i[K, O.i]) {_ALL}) == (slice(matmul(x, concat(*(w.j for j in range(M)), axis=1)), -1, {_BEFORE}, {_AFTER}, 1) {_ALL})
merge linears on one weight: (linear(x.i[O.i, *B, K], w[P, K], c[P] or None) {_ALL}) == (slice(linear(concat(*(x.j for j in range(M)), axis=0), w, c), 0, {_BEFORE}, {_AFTER}, 1) {_ALL})
merge convs: (conv2d(x[N, C, H, W], w.i[O.i, C, R, Q], {_CONV1}) {_ALL}) == (slice(conv2d(x, concat(*(w.j for j in range(M)), axis=0), {_CONV1}), 1, {_BEFORE}, {_AFTER}, 1) {_ALL})
merge convs with bias: (conv2d(x[N, C, H, W], w.i[O.i, C, R, Q], c.i[O.i], {_CONV1}) {_ALL}) == (slice(conv2d(x, concat(*(w.j for j in range(M)), axis=0), concat(*(c.j for j in range(M)), axis=0), {_CONV1}), 1, {_BEFORE}, {_AFTER}, 1) {_ALL})
merge pointwise conv into 3x3: (conv2d(x[N, C, H, W], w[O, C, 1, 1], c[O], groups=1, stride=S, padding=(0, 0), dilation=(1, 1)), conv2d(x, v[P, C, 3, 3], d[P], groups=1, stride=S, padding=(1, 1), dilation=(1, 1))) == (slice(y := conv2d(x, concat(pad(pad(w, 2, 1, 1, 0.0), 3, 1, 1, 0.0), v, axis=0), concat(c, d, axis=0), groups=1, stride=S, padding=(1, 1), dilation=(1, 1)), 1, 0, O, 1), slice(y, 1, O, O + P, 1))
add linears: linear(x[*B, K], w[O, K], c[O] or None) + linear(y[*B, L], v[O, L]) == linear(concat(x, y, axis=-1), concat(w, v, axis=1), c)
add linears with biases: linear(x[*B, K], w[O, K], c[O]) + linear(y[*B, L], v[O, L], d[O]) == linear(concat(x, y, axis=-1), concat(w, v, axis=1), c + d)

-- hoisting: a product of a part is the part of a product, so one product serves all parts
hoist linear over select: linear(select(x[*B, K], a, t), w[O, K], c[O] or None) == select(linear(x, w, c), a, t)
hoist linear over slice: linear(slice(x[*B, K], a, s, u, T), w[O, K], c[O] or None) == slice(linear(x, w, c), a, s, u, T)
hoist matmul over select: matmul(select(x[T, *B, M, K], 0, t), w[K, O]) == select(matmul(x, w), 0, t)

-- association, to be used where it is cheaper
associate right: matmul(matmul(x[*B, M, K], y[*B, K, N]), z[*B, N, P]) == matmul(x, matmul(y, z))
associate left: matmul(x[*B, M, K], matmul(y[*B, K, N], z[*B, N, P])) == matmul(matmul(x, y), z)
compose linears: linear(linear(x[*B, K], w[M, K]), v[O, M], c[O] or None) == linear(x, matmul(v, w), c)
distribute matmul: matmul(x[*B, M, K], y[*B, K, N]) + matmul(x, z[*B, K, N]) == matmul(x, y + z)
matmul is linear: matmul(x[*B, M, K], permute(w[O, K], dims=(1, 0))) == linear(x, w)
matmul of weight is linear: matmul(x[*B, M, K], w[K, O]) == linear(x, permute(w, dims=(1, 0)))
matmul of transposes: matmul(permute(y[N, K], dims=(1, 0)), permute(x[M, N], dims=(1, 0))) == permute(matmul(x, y), dims=(1, 0))

-- movement
permute of permute: permute(permute(x[*B], dims=p), dims=q) == permute(x, dims=tuple(p[j] for j in q))
no permute: permute(x[*B], dims=p) == x if p == tuple(range(len(p)))
reshape of reshape: reshape(reshape(x[*B], size=s), size=t) == reshape(x, size=t)
no reshape: reshape(x[*B], size=(*B,)) == x
split heads, merge heads: reshape(permute(permute(reshape(x[B, L, H*D], size=(B, L, H, D)), dims=(0, 2, 1, 3)), dims=(0, 2, 1, 3)), size=(B, L, H*D)) == x
concat of slices: concat(slice(x[*B], a, s, t, 1), slice(x, a, t, u, 1), axis=a) == slice(x, a, s, u, 1) if s <= t and t <= u
no slice: slice(x[M, *B], 0, 0, M, 1) == x
slice of first: slice(concat(x[M, *B], y[N, *B], axis=0), 0, 0, M, 1) == x
slice of second: slice(concat(x[M, *B], y[N, *B], axis=0), 0, M, M + N, 1) == y
slice of first channels: slice(concat(x[A, M, *B], y[A, N, *B], axis=1), 1, 0, M, 1) == x
slice of second channels: slice(concat(x[A, M, *B], y[A, N, *B], axis=1), 1, M, M + N, 1) == y
slice of slice: slice(slice(x[*B], a, s, t, 1), a, u, v, 1) == slice(x, a, s + u, s + v, 1)
stack of selects: stack(*(select(x[M, *B], 0, i) {_ALL}), axis=0) == x
select of stack: select(stack(x[*B], y[*B], axis=0), 0, 1) == y
relu of concat: concat(relu(x[A, M, *B]), relu(y[A, N, *B]), axis=1) == relu(concat(x, y, axis=1))
concat of parts: concat(slice(x[A, M, *B], 1, 0, s, 1), slice(x, 1, s, M, 1), axis=1) == x if 0 <= s and s <= M
concat of concat: concat(concat(x[A, L, *B], y[A, M, *B], axis=1), z[A, N, *B], axis=1) == concat(x, y, z, axis=1)
no expand: expand(x[*B], size=(*B,)) == x

-- library operators from their pieces
attention: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))) * s, -1) @ v[B, H, M, E] == attention(q, k, v, None, s, False, 1)
attention by division: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))) / s, -1) @ v[B, H, M, E] == attention(q, k, v, None, 1 / s, False, 1)
attention by tensor: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))) / s[()], -1) @ v[B, H, M, E] == attention(q / s, k, v, None, 1.0, False, 1)
attention by tensor with mask: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))) / s[()] + m[+B, +H, +L, +M], -1) @ v[B, H, M, E] == attention(q / s, k, v, m, 1.0, False, 1)
attention scaled before: softmax(matmul(q[B, H, L, D] * s, permute(k[B, H, M, D], dims=(0, 1, 3, 2))), -1) @ v[B, H, M, E] == attention(q, k, v, None, s, False, 1)
attention unscaled: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))), -1) @ v[B, H, M, E] == attention(q, k, v, None, 1.0, False, 1)
attention with mask: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))) * s + m[+B, +H, +L, +M], -1) @ v[B, H, M, E] == attention(q, k, v, m, s, False, 1)
attention by division with mask: softmax(matmul(q[B, H, L, D], permute(k[B, H, M, D], dims=(0, 1, 3, 2))) / s + m[+B, +H, +L, +M], -1) @ v[B, H, M, E] == attention(q, k, v, m, 1 / s, False, 1)
gelu from pieces: x[*B] * 0.5 * (1 + erf(x * 0.7071067811865476)) == gelu(x)
silu from pieces: x[*B] * sigmoid(x) == silu(x)
relu from maximum: maximum(x[*B], 0) == relu(x)
layer norm from pieces: (d := x[*B, K] - reshape(mean(x, (-1,)), size=(*B, 1))) * rsqrt(reshape(mean(d * d, (-1,)), size=(*B, 1)) + e) * g[K] + b[K] == layer_norm(x, g, b, size=(K,), eps=e)
rms norm from pieces: x[*B, K] * rsqrt(reshape(mean(square(x), (-1,)), size=(*B, 1)) + e) * g[K] == rms_norm(x, g, size=(K,), eps=e)
rms norm from powers: x[*B, K] * rsqrt(reshape(mean(pow(x, 2.0), (-1,)), size=(*B, 1)) + e) * g[K] == rms_norm(x, g, size=(K,), eps=e)
rope from pieces: x[*B, L, 2*D] * c[L, 2*D] + concat(-slice(x, -1, D, 2*D, 1), slice(x, -1, 0, D, 1), axis=-1) * s[L, 2*D] == rope(x, c, s)

-- neutral elements
times one: x[*B] * 1 == x
plus zero: x[*B] + 0 == x
minus minus: -(-x[*B]) == x
"""
# fmt: on
_UNARY = "relu gelu silu tanh sigmoid neg".split()
_MOTION = """
{f} of permute: {f}(permute(x[*B], dims=p)) == permute({f}(x), dims=p)
{f} of slice: {f}(slice(x[*B], a, s, u, T)) == slice({f}(x), a, s, u, T)
"""


def _lines() -> list[str]:
    text = _LINES + "".join(_MOTION.format(f=f) for f in _UNARY)
    return [x for x in text.splitlines() if x.strip() and not x.startswith("--")]


CONJECTURES: Mapping[str, Conjecture] = {c.name: c for c in map(Conjecture, _lines())}
