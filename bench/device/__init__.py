"""What `bench/gpu.py` measures on a device, part by part.

models     models of the zoo against torch, with rewrites and without
kernels    generated kernels alone: right, against the library's, against the roofline
rows       results as they come, in a file that is begun again where it ends
page       the same as text
"""

from __future__ import annotations
