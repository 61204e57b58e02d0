"""The Plan: everything that whet decided about a model, as a small immutable text.

    whet plan 1
    source   1f0c…                       digest of the captured graph
    result   9a42…                       digest of the graph after the rewrites
    engine   inductor                    steps | inductor | native | cuda | original
    threads  2
    kernel   5d1e… onednn+relu           one line a distinct cluster
    rewrite  {…}                         one line a step of the certificate, as JSON

The model is never edited: a plan is applied to its graph, on any machine where the kernels it names
exist. Reading refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whet.errors import WhetError

VERSION = 1
ENGINES = ("original", "steps", "inductor", "native", "cuda")


class PlanError(WhetError):
    """A plan that cannot be read, or is not for this graph."""


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module's docstring.

    Attributes:
        source: digest of the captured graph.
        result: digest of the rewritten graph.
        engine: how the body runs.
        threads: threads that kernels were chosen for.
        kernels: cluster key to kernel name.
        rewrites: certificate lines, in order.
    """

    source: str
    result: str
    engine: str
    threads: int
    kernels: Mapping[str, str] = field(default_factory=dict)
    rewrites: tuple[str, ...] = ()

    def to_text(self) -> str:
        """The plan as text; `Plan.from_text` takes it back."""
        rows = [f"whet plan {VERSION}", f"source   {self.source}", f"result   {self.result}"]
        rows += [f"engine   {self.engine}", f"threads  {self.threads}"]
        rows += [f"kernel   {key} {name}" for key, name in sorted(self.kernels.items())]
        rows += [f"rewrite  {line}" for line in self.rewrites]
        return "\n".join(rows) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Plan:
        """The plan that `to_text` wrote.

        Raises:
            PlanError: another version, or a line that cannot be read.
        """
        first, *rows = [line for line in text.splitlines() if line.strip()] or [""]
        if first.split() != ["whet", "plan", str(VERSION)]:
            raise PlanError(
                "this is not a plan that can be read here",
                expected=f"whet plan {VERSION}", got=first or "an empty file",
                hint="optimize the model again with this version of whet",
            )  # fmt: skip
        single: dict[str, str] = {}
        kernels: dict[str, str] = {}
        rewrites: list[str] = []
        for number, row in enumerate(rows, 2):
            word, _, rest = row.partition(" ")
            rest = rest.strip()
            if word == "kernel" and len(rest.split()) == 2:
                key, name = rest.split()
                kernels[key] = name
            elif word == "rewrite":
                rewrites.append(rest)
            elif word in ("source", "result", "engine", "threads") and rest:
                single[word] = rest
            else:
                raise PlanError("a line of a plan cannot be read", where=f"line {number}: {row}")
        missing = [w for w in ("source", "result", "engine", "threads") if w not in single]
        if missing or single["engine"] not in ENGINES or not single["threads"].isdigit():
            raise PlanError(
                "a plan is not complete", expected="source, result, engine and threads",
                got=", ".join(f"{k} {v}" for k, v in single.items()),
            )  # fmt: skip
        return cls(
            single["source"], single["result"], single["engine"], int(single["threads"]),
            kernels, tuple(rewrites),
        )  # fmt: skip
