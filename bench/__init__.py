"""The comparisons with other systems, runnable by anyone: `whet bench`, or `python -m bench`.

    suite      which models, against whom; a process for each model; the JSON of the results
    worker     one model: every system prepared, then timed in turns in one process
    peers      the table of systems: PyTorch and its compiler's modes, the engines, whet
    inductor   torch.compile at given settings, its linear layers routed to oneDNN if asked for
    engines    ONNX Runtime and OpenVINO
    oracle     the right answer in float64, and the work and traffic that the floor is made of
    table      the results as text

Every system gets its best settings and the same precision, float32. One that fails is a row that
says why; nothing is left out.
"""

from __future__ import annotations
