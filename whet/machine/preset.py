"""Machines as text: presets that come with whet, files, single parameters by path, and sweeps.

    Text    := version name about sources devices links nodes network [timings]         YAML
    device  := memory GB, bandwidth GB/s, peak {dtype: TFLOP/s}, units, launch us, curves, …
    link    := latency us, bandwidth GB/s, ports, medium, efficiency
    node    := count, device, inside: [{name, units, link}]        network: [{name, units, link}]
    Name    := preset[:nodes][,path=value …] | FILE.yaml[,path=value …]
               devices=N among the changes: the same machine with N devices
    path    := link.bandwidth | links.NAME.latency | device.memory | devices.NAME.peak.bfloat16 | …
    Sweep   := path=low..high[*factor] | path=value,value …

Numbers stand in the units that data sheets use; they become bytes and seconds when a `Topology` is
made. In a path `link` is the outermost link, `device` the first device, `nodes` the first kind of
node: the ones that a machine with one of them has.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from whet.errors import MissingError, WhetError
from whet.machine.device import KINDS, Curve, Device
from whet.machine.link import Link, Timing
from whet.machine.topology import Level, Node, Topology

FOLDER = Path(__file__).with_name("presets")
VERSION = 1
GIGA, TERA, MICRO = 1e9, 1e12, 1e-6

Text = dict[str, Any]


def presets() -> tuple[str, ...]:
    """Names of the machines that come with whet."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def topology(name: str) -> Topology:
    """The machine of a `Name` (see the module's grammar).

    >>> topology("h100x8:4").size, topology("h100x8:4,link.bandwidth=25").network[-1].link.bandwidth
    (32, 25000000000.0)

    Raises:
        WhetError: there is no such preset or file, or a path or value does not fit.
    """
    if name.partition(",")[0].endswith((".yaml", ".yml")):
        return read(text_of(name), name)  # the file may change
    return _of_preset(name)


@lru_cache(maxsize=256)
def _of_preset(name: str) -> Topology:
    return read(text_of(name), name)


def text_of(name: str) -> Text:
    """The text of a `Name`, its changes made.

    Raises:
        WhetError: there is no such preset or file, or a path or value does not fit.
    """
    base, *changes = name.split(",")
    text = _load(base)
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals:
            raise WhetError(
                "a change of a machine needs a value", expected="path=value", got=change, where=name
            )
        if path.strip() == "devices":
            text = of_devices(text, value, name)
        else:
            text = overridden(text, path.strip(), _yaml().safe_load(value))
    return text


def of_devices(text: Text, number: str, where: str) -> Text:
    """The same machine with another number of devices: whole nodes, and a part of one for the rest.

    >>> topology("h100x8,devices=64").size, topology("h100x8,devices=12").nodes[1].devices
    (64, 4)

    Raises:
        WhetError: no number, or the machine has several kinds of nodes.
    """
    try:
        count = int(float(number))
    except ValueError:
        count = 0
    if count < 1:
        raise WhetError(
            "a machine has a whole number of devices", expected="1 or more", got=number,
            where=where, hint="--devices 2, say",
        )  # fmt: skip
    nodes = text["nodes"]
    each = [math.prod(int(level["units"]) for level in n.get("inside", ())) for n in nodes]
    total = sum(int(n["count"]) * k for n, k in zip(nodes, each, strict=True))
    if count == total:
        return text
    if len(nodes) > 1:
        raise WhetError(
            "a machine of several kinds of nodes has the number of devices that it has",
            expected=total, got=count, where=where,
            hint="change one kind of nodes: nodes.0.count=2",
        )  # fmt: skip
    if not text.get("network"):
        return {**text, "nodes": [_part(nodes[0], count, where)]}
    if len(text["network"]) > 1 and text["network"][0].get("units") and count % each[0]:
        raise WhetError(
            "a network of several levels joins whole nodes", expected=f"a multiple of {each[0]}",
            got=count, where=where,
        )  # fmt: skip
    whole, rest = divmod(count, each[0])
    made = [{**nodes[0], "count": whole}] if whole else []
    return {**text, "nodes": made + ([_part(nodes[0], rest, where)] if rest else [])}


def _part(node: Text, count: int, where: str) -> Text:
    """One node with some of its devices; its outermost level takes as many units as it needs."""
    inside, left = [], count
    for k, level in enumerate(node["inside"]):
        units = int(level["units"])
        if k == len(node["inside"]) - 1 or left < units:
            units = left
        elif left % units:
            raise WhetError(
                f"a node has units of {units} devices", expected=f"a multiple of {units}",
                got=count, where=where,
            )  # fmt: skip
        inside.append({**level, "units": units})
        left //= units
    return {**node, "count": 1, "inside": inside}


def _load(name: str) -> Text:
    if name.endswith((".yaml", ".yml")):
        return parse(Path(name))
    stem, _, count = name.partition(":")
    file = FOLDER / f"{stem}.yaml"
    if stem not in presets():
        near = difflib.get_close_matches(stem, presets(), n=3, cutoff=0.3)
        raise WhetError(
            f"there is no machine named {stem!r}",
            expected="one of " + ", ".join(presets()) + ", or a FILE.yaml",
            got=stem,
            hint="did you mean " + " or ".join(near) + "?" if near else "whet machine list",
        )
    text = parse(file)
    if count:
        if not count.isdigit() or int(count) < 1:
            raise WhetError(
                "a machine has a whole number of nodes", expected=f"{stem}:16", got=name
            )
        if text.get("network"):
            return overridden(text, "nodes.count", int(count))
        # Nothing joins several of its nodes: it is one with so many times the devices.
        each = math.prod(int(level["units"]) for level in text["nodes"][0]["inside"])
        return of_devices(text, str(int(count) * each), name)
    return text


def parse(file: Path) -> Text:
    """The text of a machine, as data.

    Raises:
        WhetError: the file cannot be read, is no YAML, or of another version.
    """
    yaml = _yaml()
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise WhetError("a machine's file cannot be read", got=fault.strerror, where=file) from None
    except yaml.YAMLError as fault:
        raise WhetError("a machine's file is not YAML", got=fault, where=file) from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else type(data).__name__
        raise WhetError(
            "this is not a machine that this whet reads",
            expected=f"version: {VERSION}",
            got=found,
            where=file,
        )
    text: Text = data
    return text


def overridden(text: Text, path: str, value: object) -> Text:
    """The text with one value replaced; everything else is shared.

    Raises:
        WhetError: no such value, or it is of another type.
    """
    keys = path.split(".")
    match keys[0]:
        case "link":
            outer = (text.get("network") or text["nodes"][0]["inside"])[-1]["link"]
            keys[:1] = ["links", outer]
        case "device":
            keys[:1] = ["devices", text["nodes"][0]["device"]]
    changed: Text = _changed(text, tuple(keys), value, path)
    return changed


def _changed(at: Any, keys: tuple[str, ...], value: object, path: str) -> Any:
    if not keys:
        if isinstance(at, dict | list) or isinstance(value, dict | list):
            raise WhetError("only single values can be changed by path", got=path)
        if isinstance(at, int | float) != isinstance(value, int | float):
            raise WhetError(f"{path} is of another type", expected=f"such as {at!r}", got=value)
        return value
    if isinstance(at, list):
        place = int(keys[0]) if keys[0].isdigit() else 0
        rest = keys[1:] if keys[0].isdigit() else keys
        if place < len(at):
            return [*at[:place], _changed(at[place], rest, value, path), *at[place + 1 :]]
    elif isinstance(at, dict):
        defaults = {"ports": 1, "medium": False, "efficiency": 1.0, "launch": 0.0, "units": 1}
        default = defaults.get(keys[0]) if len(keys) == 1 else None
        if keys[0] in at or default is not None:
            return {**at, keys[0]: _changed(at.get(keys[0], default), keys[1:], value, path)}
    raise WhetError(
        f"a machine has no {path}",
        expected=", ".join(map(str, at)) if isinstance(at, dict) else "link.bandwidth, …",
        got=keys[0],
        hint="whet machine show prints every value",
    )


def sweep(text: str) -> tuple[str, tuple[float, ...]]:
    """The path and the values of a `Sweep`.

    >>> sweep("link.bandwidth=25..400")
    ('link.bandwidth', (25.0, 50.0, 100.0, 200.0, 400.0))
    >>> sweep("nodes.count=1,3,9")
    ('nodes.count', (1.0, 3.0, 9.0))

    Raises:
        WhetError: it is none.
    """
    path, _, range_ = text.partition("=")
    try:
        if ".." not in range_:
            return path, tuple(float(v) for v in range_.split(","))
        low, _, high = range_.partition("..")
        high, _, factor = high.partition("*")
        value, last, by = float(low), float(high), float(factor or 2)
        if not (0 < value <= last and by > 1):
            raise ValueError(range_)
        values = []
        while value < last * (1 + 1e-9):
            values.append(value)
            value *= by
        if values[-1] < last * (1 - 1e-9):
            values.append(last)
        return path, tuple(values)
    except ValueError:
        raise WhetError(
            "a sweep names values of one parameter",
            expected="link.bandwidth=25..400, link.latency=1..64*4 or nodes.count=1,2,8",
            got=text,
        ) from None


def read(text: Mapping[str, Any], name: str = "") -> Topology:
    """The topology that a text describes.

    Raises:
        WhetError: something is missing, unknown or refers to what is not there.
    """
    name = name or str(text.get("name", "machine"))
    try:
        devices = {k: _device(k, v) for k, v in text["devices"].items()}
        links = {k: _link(k, v) for k, v in text["links"].items()}
        nodes = tuple(
            Node(
                int(n["count"]),
                _named(devices, "device", n["device"], name),
                tuple(_level(level, links, name) for level in n.get("inside", ())),
            )
            for n in text["nodes"]
        )
        network = tuple(_level(level, links, name) for level in text.get("network", ()))
        if not network and sum(n.count for n in nodes) > 1:
            raise WhetError(
                "several nodes and nothing that joins them", expected="network: [{name, link}]",
                got=f"{sum(n.count for n in nodes)} nodes", where=name,
            )  # fmt: skip
        timings = tuple(
            Timing(t["what"], int(t["ranks"]), tuple((int(b), s * MICRO) for b, s in t["points"]))
            for t in text.get("timings", ())
        )
        sources = tuple(text.get("sources", ()))
        return Topology(name, nodes, network, timings, str(text.get("about", "")).strip(), sources)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise WhetError(
            "a machine is not described in full",
            expected="devices, links, nodes and network, as `whet machine show` prints them",
            got=f"{type(fault).__name__}: {fault}",
            where=name,
        ) from fault


def _named(table: Mapping[str, Any], what: str, name: str, where: str) -> Any:
    if name not in table:
        raise WhetError(f"no {what} {name!r}", expected=", ".join(table), got=name, where=where)
    return table[name]


def _level(level: Mapping[str, Any], links: Mapping[str, Link], where: str) -> Level:
    link = _named(links, "link", level["link"], where)
    return Level(str(level.get("name", level["link"])), int(level.get("units", 0)), link)


def _link(name: str, row: Mapping[str, Any]) -> Link:
    _only(row, ("latency", "bandwidth", "ports", "medium", "efficiency"), f"links.{name}")
    return Link(
        name,
        row["latency"] * MICRO,
        row["bandwidth"] * GIGA,
        int(row.get("ports", 1)),
        bool(row.get("medium", False)),
        float(row.get("efficiency", 1.0)),
    )


DEVICE = (
    "memory bandwidth peak units launch curves slowdown host grain eager"  # as `_device` reads them
).split()


def _device(name: str, row: Mapping[str, Any]) -> Device:
    _only(row, DEVICE, f"devices.{name}")
    return Device(
        name,
        int(row["memory"] * GIGA),
        row["bandwidth"] * GIGA,
        tuple((k, v * TERA) for k, v in row["peak"].items()),
        int(row.get("units", 1)),
        row.get("launch", 0.0) * MICRO,
        tuple(_curve(c, f"devices.{name}.curves") for c in row.get("curves", ())),
        tuple(row.get("slowdown", (1.0, 1.0))),
        row.get("host", 0.0) * GIGA,
        tuple(row.get("grain", (512, 2 << 20, 10 << 20))),
        bool(row.get("eager", False)),
    )


def _curve(row: Mapping[str, Any], where: str) -> Curve:
    _only(row, ("kind", "dtype", "top", "tile", "depth", "points"), where)
    if row["kind"] not in KINDS:
        raise WhetError(
            "no such class of kernels", expected=", ".join(KINDS), got=row["kind"], where=where
        )
    tile = tuple(row.get("tile", (1, 1)))
    points = tuple((tuple(dims), rate * GIGA) for dims, rate in row.get("points", ()))
    return Curve(
        row["kind"],
        float(row.get("top", 1.0)),
        (int(tile[0]), int(tile[1])),
        float(row.get("depth", 0.0)),
        points,
        str(row.get("dtype", "")),
    )


def _only(row: Mapping[str, Any], known: tuple[str, ...] | list[str], where: str) -> None:
    unknown = [key for key in row if key not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise WhetError(
            f"a machine's file has an unknown key {unknown[0]!r}",
            expected=", ".join(known),
            got=unknown[0],
            where=where,
            hint=f"did you mean {near[0]}?" if near else None,
        )


def write(text: Mapping[str, Any]) -> str:
    """A machine's text as YAML, a measured point on a line; `parse` reads it back."""
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined]
        """Knows rows and columns."""

    kind = "tag:yaml.org,2002:seq"
    Dumper.add_representer(_Row, lambda d, row: d.represent_sequence(kind, row, True))
    Dumper.add_representer(_Column, lambda d, rows: d.represent_sequence(kind, rows, False))
    head = "# Units: memory GB, bandwidth GB/s, peak TFLOP/s, latency and launch us, rates G/s.\n"
    body: str = yaml.dump(
        _rows(text), Dumper=Dumper, sort_keys=False, default_flow_style=None, width=100
    )
    return head + body


def _yaml() -> Any:
    """Plans for one device, and running them, do without the package.

    Raises:
        MissingError: it is not installed.
    """
    try:
        import yaml
    except ImportError as fault:
        raise MissingError(
            "machines are described in YAML", got=fault, hint="pip install pyyaml"
        ) from fault
    return yaml


class _Row(list):  # type: ignore[type-arg]
    """A list that is written on one line."""


class _Column(list):  # type: ignore[type-arg]
    """A list with a line for each element."""


def _rows(at: Any, key: str = "") -> Any:
    """The same data, each of its `points` a row."""
    if isinstance(at, Mapping):
        return {k: _rows(v, k) for k, v in at.items()}
    if isinstance(at, str):
        return at.strip()
    if key == "sources":
        return _Column(at)
    if isinstance(at, list):
        return [_Row(v) if key == "points" else _rows(v) for v in at]
    return at
