"""Normalizations, kept whole while that pays; their expansions are rules like any other."""

from __future__ import annotations

RECORDS = [
    """y = batch_norm(x[n, c, *s], mean[c], var[c], gamma[c] or 1, beta[c] or 0, eps=eps)
       y[n, c, *s] = (x[n, c, *s] - mean[c]) * rsqrt(var[c] + eps) * gamma[c] + beta[c]""",
    """y = layer_norm(x[*b, *r], gamma[*r] or 1, beta[*r] or 0, size=(*r,), eps=eps)
       m[*b] = sum[*r](x[*b, *r]) / R
       s[*b] = sum[*r]((x[*b, *r] - m[*b])**2) / R
       y[*b, *r] = (x[*b, *r] - m[*b]) * rsqrt(s[*b] + eps) * gamma[*r] + beta[*r]""",
    """y = rms_norm(x[*b, *r], gamma[*r] or 1, size=(*r,), eps=eps)
       s[*b] = sum[*r](x[*b, *r]**2) / R
       y[*b, *r] = x[*b, *r] * rsqrt(s[*b] + eps) * gamma[*r]""",
    """y = group_norm(x[n, (g, c), *s], gamma[(g, c),] or 1, beta[(g, c),] or 0, groups=G, eps=eps)
       m[n, g] = sum[c, *s](x[n, (g, c), *s]) / (C*S)
       d[n, g] = sum[c, *s]((x[n, (g, c), *s] - m[n, g])**2) / (C*S)
       y[n, (g, c), *s] = (x[n, (g, c), *s] - m[n, g]) * rsqrt(d[n, g] + eps) * gamma[(g, c),] + beta[(g, c),]""",
    """y = local_response_norm(x[n, c, *s], size=K, before=p, alpha=alpha, beta=beta, k=k)
       q[n, c, *s] = sum[t: K]((x[n, c + t - p, *s] or 0)**2)
       y[n, c, *s] = x[n, c, *s] / pow(k + alpha * q[n, c, *s] / K, beta)""",
]  # fmt: skip
