"""`python -m bench`: the verb `whet bench` without whet's other verbs."""

from __future__ import annotations

import argparse
import sys

from bench import cli
from whet.errors import WhetError


def main() -> int:
    """Parses the command line and runs the verb; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=cli.__doc__)
    cli.add_arguments(parser)
    try:
        return cli.run(parser.parse_args())
    except WhetError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
