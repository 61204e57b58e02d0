"""What whet gains on an NVIDIA GPU: correctness first, then every model of the zoo, in pieces.

    python -m bench.gpu --part rewrites     where solvers are: what rules lead to, into the store
    python -m bench.gpu --part check        every kernel kind on the device, against float64
    python -m bench.gpu --part models       against eager and the modes of torch.compile
    python -m bench.gpu --part ablation     rewrites on and off, on the TASO five
    python -m bench.gpu --part shapes       generated kernels against the library's, shape by shape
    python -m bench.gpu --part kernels      each group of each model: its share of the roofline

Needs torch, triton, numpy and this repository. Each run ends after --seconds and is begun again
until it says that nothing is left: records are written as they come, and what is there is left out.
What compilers and tuning found lies under --caches as files (whet's store, Triton's and Inductor's
caches), to be carried from one machine to the next; `rewrites` fills the same store. --pretend goes
through all of it on a processor, in Triton's interpreter, and measures nothing that means anything.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench.gpu import kernels, models
from bench.gpu.rows import Record, Rows
from whet.run.cuda import Cuda, Pretended

Part = Callable[[argparse.Namespace, Rows], Iterator[list[Record]]]
PARTS: dict[str, Part] = {
    "rewrites": models.rewrites, "check": kernels.check, "models": models.against,
    "ablation": models.ablation, "shapes": kernels.shapes, "kernels": kernels.groups,
}  # fmt: skip
RESULTS = Path(__file__).parents[1] / "results"
CACHES = {
    "WHET_CACHE": "whet", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor",
}  # fmt: skip


class TimeIsUp(BaseException):
    """The run's seconds have passed; no library may take it for a fault of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """One part; 0, 1 where a result was wrong, 2 without a device, 3 where something is left."""
    args = parsed(sys.argv[1:] if argv is None else argv)
    if args.caches is not None:
        for name, folder in CACHES.items():
            os.environ[name] = str(args.caches.absolute() / folder)
    here = args.part == "rewrites" or args.pretend
    if not here and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU: nothing can be measured here")
        return 2
    args.cuda = Pretended() if here else Cuda("cuda")
    args.end = time.monotonic() + args.seconds
    rows = Rows.of(args.results, args.part, args.cuda, args.pretend)
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, args.seconds)
    left = False
    try:
        for records in PARTS[args.part](args, rows):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # all of them, or none
            rows.add(records)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    except TimeIsUp:
        left = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    rows.complete(not left)
    print(rows.summary())
    print("time is up: the same command goes on from here" if left else "nothing is left")
    return 3 if left else int(any(not r.get("right", True) for r in rows.records))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    head = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="bench.gpu", description=head)
    parser.add_argument("--part", choices=tuple(PARTS), default="check")
    parser.add_argument("--models", default="", help="names with commas; all unless given")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--kinds", default=",".join(models.KINDS))
    parser.add_argument("--seconds", type=float, default=500.0, help="after which a run ends")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds to optimize a model")
    parser.add_argument("--caches", type=Path, help="folder of all caches, carried as files")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="the zoo's small sizes")
    parser.add_argument("--pretend", action="store_true", help="without a device, for tests")
    return parser.parse_args(argv)


def _ring(*_: object) -> None:
    raise TimeIsUp
