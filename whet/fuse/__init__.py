"""Fusing: which operators one kernel computes, found by a search that kernels talk back to."""
