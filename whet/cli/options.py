"""Arguments that several verbs take, read from text."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

UNITS: Mapping[str, float] = {"": 1, "ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600}
SIZES: Mapping[str, int] = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

MODEL = "zoo:NAME, FILE.onnx, FILE.pt2 or package.module:function"


def seconds(text: str) -> float:
    """A time span: `90`, `90s`, `1.5m`, `500ms`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip())
    if found is None or found[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"expected a time such as 60s or 2m, got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def amount(text: str) -> int:
    """A number of bytes: `100000`, `512M`, `4G`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 512M or 4G, got {text!r}")
    return int(found[1]) * SIZES[found[2]]


def threads(text: str) -> int:
    """A number of threads.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more threads, got {text!r}")
    return int(text)


def size(text: str) -> tuple[str, int]:
    """A named size: `batch=8`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    name, equal, number = text.partition("=")
    if not (name.strip() and equal and number.strip().isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a size such as batch=8, got {text!r}")
    return name.strip(), int(number)


def add_model(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """The model to work on."""
    parser.add_argument("model", metavar="MODEL", nargs="?" if optional else None, help=MODEL)
    parser.add_argument(
        "--size", type=size, action="append", default=[], metavar="NAME=N",
        help="a number for a size that an ONNX file leaves open, such as batch=1; once for each",
    )  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    """How many threads."""
    parser.add_argument("--threads", type=threads, metavar="N", help="threads (default: all)")


def add_small(parser: argparse.ArgumentParser) -> None:
    """The zoo's models at a small scale."""
    parser.add_argument(
        "--small", action="store_true", help="a small model of the same architecture (zoo only)"
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Where a program is saved."""
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where the program goes (default: out/NAME)"
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """How long and with what to search."""
    parser.add_argument(
        "--budget", type=seconds, default=60.0, metavar="TIME", help="time to spend (default: 60s)"
    )
    add_threads(parser)
    parser.add_argument(
        "--strict", action="store_true", help="refuse library calls that have no record"
    )


def short(model: str) -> str:
    """A name for files, from what the user called the model: `zoo:lstm` is `lstm`.

    >>> short("zoo:lstm"), short("nets/big.v2.onnx"), short("my.models:build")
    ('lstm', 'big.v2', 'build')
    """
    kind, colon, name = model.rpartition(":")
    if colon and kind and "/" not in name and "\\" not in name:
        return re.sub(r"[^\w.-]", "_", name) or "model"
    return Path(model).stem or "model"
