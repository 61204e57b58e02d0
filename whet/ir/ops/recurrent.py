"""Cells of recurrent networks: one step; the loop over time belongs to the graph."""

from __future__ import annotations

RECORDS = [
    """h1, c1 = lstm_cell(x[n, k], h0[n, d], c0[n, d], w[(t, d), k], u[(t, d), f], a[(t, d),] or 0, T=4)
       z[n, t, d] = sum[k](x[n, k] * w[(t, d), k]) + sum[f](h0[n, f] * u[(t, d), f]) + a[(t, d),]
       c1[n, d] = sigmoid(z[n, 1, d]) * c0[n, d] + sigmoid(z[n, 0, d]) * tanh(z[n, 2, d])
       h1[n, d] = sigmoid(z[n, 3, d]) * tanh(c1[n, d])""",
    """h1 = gru_cell(x[n, k], h0[n, d], w[(t, d), k], u[(t, d), f], a[(t, d),] or 0, b[(t, d),] or 0, T=3)
       p[n, t, d] = sum[k](x[n, k] * w[(t, d), k]) + a[(t, d),]
       q[n, t, d] = sum[f](h0[n, f] * u[(t, d), f]) + b[(t, d),]
       r[n, d] = sigmoid(p[n, 0, d] + q[n, 0, d])
       s[n, d] = sigmoid(p[n, 1, d] + q[n, 1, d])
       e[n, d] = tanh(p[n, 2, d] + r[n, d] * q[n, 2, d])
       h1[n, d] = (1 - s[n, d]) * e[n, d] + s[n, d] * h0[n, d]""",
]  # fmt: skip
