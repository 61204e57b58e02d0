"""`whet machine`: the machines that plans are made for.

list           those that come with whet
show NAME      one of them, or a file, with changes: h100x8:16,link.bandwidth=25
measure        this host, as processes over loopback: kernels, collectives, overlap; to --out
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from whet.cli.console import Console, write
from whet.errors import WhetError
from whet.machine import Topology, preset, topology
from whet.report import table


def arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which machine."""
    parser.add_argument("what", choices=ACTS, help="what to do")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of show: a preset or FILE.yaml")
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="processes to measure")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where measure writes the machine")


def run(args: argparse.Namespace, console: Console) -> int:
    """Does it.

    Raises:
        WhetError: `show` without a name, or with an unknown one; measuring failed.
    """
    console.finish(ACTS[args.what](args, console))
    return 0


def _list(args: argparse.Namespace, console: Console) -> Any:
    rows = [["machine", "devices", "", "about"]]
    for name in preset.presets():
        found = topology(name)
        kinds = " + ".join(f"{n.count * n.devices} {n.device.name}" for n in found.nodes)
        rows.append([name, kinds, "", re.split("[.:;]", found.about)[0]])
    console.print(table.aligned(rows, left=(0, 1, 2, 3)))
    console.print(
        "\nNAME:16 has 16 nodes; NAME,link.bandwidth=25 changes a value; "
        "whet machine show NAME prints them all"
    )
    return [row[0] for row in rows[1:]]


def _show(args: argparse.Namespace, console: Console) -> Any:
    if args.name is None:
        raise WhetError(
            "which machine?", expected="whet machine show NAME", hint="whet machine list"
        )
    found = topology(args.name)
    text = preset.text_of(args.name)
    console.print(preset.write(text).rstrip())
    console.print()
    console.print(_summary(found))
    return text


def _summary(found: Topology) -> str:
    """What follows from the text: sizes, and the levels of the hierarchy."""
    rows = [["level", "joins", "link", "latency", "bandwidth", "ports"]]
    rows += [
        _level(f"{node.device.name} {level.name}", f"{level.units}", level.link)
        for node in found.nodes
        for level in node.inside
    ]
    nodes = sum(node.count for node in found.nodes)
    rows += [_level(v.name, f"{v.units or nodes}", v.link) for v in found.network]
    memory = sum(n.count * n.devices * n.device.memory for n in found.nodes)
    head = f"{table.counted(found.size, 'device')}, {table.size(memory)} of memory together"
    return f"{head}\n{table.aligned(rows, left=(0, 2))}\nfingerprint {found.fingerprint()}"


def _level(name: str, joins: str, link: Any) -> list[str]:
    return [
        name,
        joins,
        link.name,
        table.duration(link.latency),
        f"{link.bandwidth * link.efficiency / 1e9:.4g} GB/s",
        "shared" if link.medium else str(link.ports),
    ]


def _measure(args: argparse.Namespace, console: Console) -> Any:
    from whet.run.calibrate import measured

    text = measured(args.ranks, console.progress)
    out = args.out or Path(f"{text['name']}.yaml")
    write(out, preset.write(text))
    console.print(_summary(preset.read(text)))
    console.print(f"written to {out}; plan for it with --machine {out}")
    return text


Act = Callable[[argparse.Namespace, Console], Any]
ACTS: Mapping[str, Act] = {"list": _list, "show": _show, "measure": _measure}
