"""`python -m whet.cli`: the command line where the script `whet` is not on the path."""

from __future__ import annotations

import sys

from whet.cli import main

if __name__ == "__main__":
    sys.exit(main())
