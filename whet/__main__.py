"""`python -m whet`: the command line, for launchers such as `torchrun -m whet run PLAN`."""

from __future__ import annotations

import sys

from whet.cli import main

if __name__ == "__main__":
    sys.exit(main())
