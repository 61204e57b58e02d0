"""Single models by their seeds: `python -m bench.fuzz SEED [SEED …]`; or `--lines FIRST END`: those
from FIRST to before END, a line of JSON each, as they are done."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch

from bench.fuzz import outcomes

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz")
    parser.add_argument("seeds", type=int, nargs="+", metavar="SEED")
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for found in outcomes(range(*args.seeds) if args.lines else args.seeds):
        print(json.dumps(asdict(found)) if args.lines else found, flush=True)
