"""The ways out: programs that run, and how fast they do.

`peaks` measures what the machine can do at most, `measure` what callables take, interleaved and
fairly; the other modules hold programs, their memory and their certificates.
"""

from __future__ import annotations
