"""Kernels: loop nests derived from operator records, and what makes them fast.

loops, layout, text    the Loop IR: buffers, where they lie, and statements; as text
lower                  a cluster -> its naive kernel
affine                 index arithmetic: simplified, bounded
interpret              what a kernel computes
schedule, move, legal  moves over kernels, replayable, refused with reasons
order, mark, inline, place, stage, fold, online, parts, trim  the moves, each with its check
region, shrink, tidy   what moves share
chain, core, tile, blocks                                   schedules worked out from the nests
model, process         what predicts a kernel's time
"""
