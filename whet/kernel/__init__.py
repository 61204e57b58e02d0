"""Kernels: loop nests derived from operator records, and what makes them fast.

loops, layout, text    the Loop IR: buffers, where they lie, and statements; as text
lower                  a cluster -> its naive kernel
affine                 index arithmetic: simplified, bounded
interpret              what a kernel computes
schedule, legal        moves over kernels, replayable, each with its check
model, process         what predicts a kernel's time
"""
