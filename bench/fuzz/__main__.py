"""Single models by their seeds: `python -m bench.fuzz SEED [SEED …]`."""

from __future__ import annotations

import sys

from bench.fuzz import outcomes

if __name__ == "__main__":
    for found in outcomes(map(int, sys.argv[1:])):
        print(found)
