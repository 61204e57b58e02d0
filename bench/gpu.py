"""What whet gains on an NVIDIA GPU: correctness first, then every model of the zoo, in pieces.

    python bench/gpu.py                        all of this, in this order, until nothing is left
    python bench/gpu.py --part check           every kernel kind on the device, against float64
    python bench/gpu.py --part models          against eager and the modes of torch.compile
    python bench/gpu.py --part ablation        rewrites on and off, on the TASO five
    python bench/gpu.py --part shapes          generated kernels against the library's, by shape
    python bench/gpu.py --part kernels         each group of each model: its share of the roofline
    python bench/gpu.py --part rewrites        elsewhere, where solvers are: into the same store

Needs torch, triton, numpy and this repository. Each run ends after --seconds (less than nine
minutes) and is begun again until it says that nothing is left: records are written as they come,
and what is there is left out. What compilers and tuning found lies under --caches as files (whet's
store, Triton's and Inductor's caches), to be carried from one machine to the next; `rewrites` fills
the same store. Peaks and bandwidth are measured once on each chip. --pretend goes through all of it
on a processor, in Triton's interpreter, and measures nothing that means anything.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # run as a file: its own folder is no place to import from
    sys.path[:] = [str(ROOT), *(p for p in sys.path if Path(p).resolve() != ROOT / "bench")]

import torch  # noqa: E402

from bench.device import kernels, models, page  # noqa: E402
from bench.device.rows import Record, Rows  # noqa: E402
from whet.run.cuda import Cuda, Pretended  # noqa: E402

Part = Callable[[argparse.Namespace, Rows], Iterator[list[Record]]]
MEASURED: dict[str, Part] = {
    "check": kernels.check, "models": models.against, "ablation": models.ablation,
    "shapes": kernels.shapes, "kernels": kernels.groups,
}  # fmt: skip
PARTS: dict[str, Part] = {**MEASURED, "rewrites": models.rewrites}
CACHES = {
    "WHET_CACHE": "whet", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor",
}  # fmt: skip


class TimeIsUp(BaseException):
    """The run's seconds have passed; no library may take it for a fault of its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Goes on until the time is up; 0, 1 where a result was wrong, 2 without a device, 3 where
    something is left."""
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
    asked = dict(vars(args))
    wrong = False
    for name in MEASURED if args.part == "all" else [args.part]:
        vars(args).update(asked)  # parts narrow down what they were asked for
        rows = Rows.of(args.results, name, args.cuda, args.pretend)
        left = not _done(PARTS[name], args, rows)
        print(page.text(rows.data), rows.summary(), sep="\n\n")
        wrong |= any(not r.get("right", True) for r in rows.records)
        if left:
            print(f"time is up in {name}: the same command goes on from here")
            return 3
    print("nothing is left")
    return int(wrong)


def _done(part: Part, args: argparse.Namespace, rows: Rows) -> bool:
    """Whether a part came to its end before the run did."""
    signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, max(args.end - time.monotonic(), 1e-3))
    done = True
    try:
        for records in part(args, rows):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # all of them, or none
            rows.add(records)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    except TimeIsUp:
        done = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    rows.complete(done)
    return done


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    head = str(__doc__).splitlines()[0]
    parser = argparse.ArgumentParser(prog="bench/gpu.py", description=head)
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--models", default="", help="names with commas; all unless given")
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--kinds", default=",".join(models.KINDS))
    parser.add_argument("--seconds", type=float, default=500.0, help="after which a run ends")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds to optimize a model")
    parser.add_argument("--caches", type=Path, help="folder of all caches, carried as files")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results", metavar="FOLDER")
    parser.add_argument("--small", action="store_true", help="the zoo's small sizes")
    parser.add_argument("--pretend", action="store_true", help="without a device, for tests")
    return parser.parse_args(argv)


def _ring(*_: object) -> None:
    raise TimeIsUp


if __name__ == "__main__":
    sys.exit(main())
