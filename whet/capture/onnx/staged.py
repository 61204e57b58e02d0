"""A plan of a forward pass as ONNX files: what each rank computes, and what happens between.

    write(plan, folder) → folder/plan.json, stage0.onnx, …

A stage whose ranks do not talk is one file, for all its replicas; where parameters are cut each
rank has a file of its own. ONNX has no collectives: a rank's computation ends where one stands and
goes on in another file behind it. `plan.json` lists the steps in an order in which they can be
taken, once for each microbatch:

    take   a part of an input                 run     a file on a rank
    cut    a part of a value                  all_reduce, all_gather, reduce_scatter, all_to_all
    send   a part of a value to a rank        join    what was sent, one behind the other
    give   a value as a part of a result

Values have names on their rank. A part is said by a view: the sizes that a tensor is seen with, and
of each of them where it starts (for each microbatch) and how long it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whet.backend import aten
from whet.backend.aten import torch_dtype
from whet.capture.onnx import between
from whet.capture.onnx.between import Json, shape_of
from whet.capture.onnx.file import write_model
from whet.capture.onnx.model import OnnxModel
from whet.capture.onnx.notation import written
from whet.capture.onnx.writer import Writer, held
from whet.errors import WhetError
from whet.ir.graph import Node
from whet.ir.kind import kind_of
from whet.ir.record import Instance
from whet.ir.types import DType
from whet.parallel.choice import cuts_of
from whet.parallel.library import MICRO
from whet.parallel.parts import Row, number, place, rows, starts
from whet.parallel.program import Compute, Exchange, Key, NotExecutable, Op, Program, Total
from whet.parallel.sharding import WHOLE
from whet.run.parallel.exchange import Grid, part, rows_of
from whet.run.parallel.local import meant
from whet.run.parallel.message import Routes, grids

VERSION = 1


@dataclass(slots=True)
class _File:
    """A file while it is written, with the names of its values."""

    writer: Writer = field(default_factory=Writer)
    names: dict[Key, str] = field(default_factory=dict)
    given: dict[Key, str] = field(default_factory=dict)
    takes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Rank:
    """One rank of a stage: its files, and the values that it has between them."""

    rank: int
    files: list[_File] = field(default_factory=lambda: [_File()])
    made: dict[Key, _File] = field(default_factory=dict)
    values: dict[Key, str] = field(default_factory=dict)

    @property
    def file(self) -> _File:
        return self.files[-1]


def write(program: Program, wholes: Mapping[str, Tensor], folder: Path) -> Json:
    """Write a program's files, and how they belong together.

    Args:
        program: of a forward pass alone.
        wholes: parameters and buffers by name.
        folder: made if it is not there.

    Returns:
        What `plan.json` says.

    Raises:
        NotExecutable: it trains, or counts something over its microbatches.
        UnsupportedError: a library call without a record, or weights on the meta device.
        WhetError: the folder cannot be written.
    """
    if program.model.training:
        raise NotExecutable(
            "ONNX files hold a forward pass", expected="a plan of inference", got="a training step",
            hint="whet parallelize --inference finds one",
        )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise WhetError(f"{folder} cannot be made", got=fault.strerror) from fault
    made = _Writing(program, wholes, folder).all()
    (folder / "plan.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    return made


class _Writing:
    def __init__(self, program: Program, wholes: Mapping[str, Tensor], folder: Path) -> None:
        self.program, self.wholes, self.folder = program, wholes, folder
        self.grids = grids(program)
        self.routes = Routes(program, self.grids)
        self.steps: list[Json] = []
        self.own: dict[Node, Tensor] = {}
        self.labels: dict[tuple[int, Key, str], str] = {}
        self.count = 0
        for n in program.own:
            args = [None if a is None else self._own(a) for a in n.args]
            self.own[n] = aten.call(n, args)

    def all(self) -> Json:
        graph, micro = self.program.model.graph, self.program.strategy.microbatches
        for s in range(len(self.program.stages)):
            self._stage(s)
        return {
            "whet onnx plan": VERSION,
            "plan": str(self.program.strategy),
            "ranks": self.program.ranks,
            "microbatches": micro,
            "inputs": {n.name: _type(n) for n in graph.inputs},
            "results": [_type(n) for n in graph.outputs],
            "steps": self.steps,
        }

    def _own(self, n: Node) -> Tensor:
        found = self.program.model.graph.constants.get(n.name) if n.is_leaf else self.own[n]
        return held(n, found)

    def _name(self, what: str) -> str:
        self.count += 1
        return f"{what}_{self.count}"

    def _label(self, s: int, key: Key, what: str) -> str:
        """The name of a value of a stage, the same on all its ranks."""
        if (s, key, what) not in self.labels:
            self.labels[s, key, what] = self._name(what)
        return self.labels[s, key, what]

    # -- one stage ---------------------------------------------------------------------------------
    def _stage(self, s: int) -> None:
        stage = self.program.stages[s]
        ranks = [_Rank(r) for r in self.program.members(s)]
        self._received(s, ranks)
        pending: list[tuple[int, list[Json]]] = []  # steps that wait for the files before them
        for piece in stage.pieces:
            for op in piece.forward:
                self._op(s, ranks, op, pending)
        end: list[Json] = []
        for k, key in stage.results:
            rows_ = rows(shape_of(key.node), (), key.at, stage.axes)
            end += [
                {"do": "give", "rank": r.rank, "value": self._out(r, key, s), "result": k,
                 **self._part(rows_, self.grids[s], r.rank)}
                for r in ranks
            ]  # fmt: skip
        for m_number, m in enumerate(self.program.messages):
            if m.sender == s and m.made == "forward":
                end += self._sent(m_number, ranks)
        pending.append((len(ranks[0].files), end))
        self._written(s, ranks, pending)

    def _written(
        self, s: int, ranks: Sequence[_Rank], pending: Sequence[tuple[int, list[Json]]]
    ) -> None:
        """The files of a stage, and its steps in order."""
        done = 0
        for upto, steps in pending:
            for k in range(done, upto):
                models = [r.files[k].writer.model() for r in ranks]
                live = [bool(m.graph.outputs) for m in models]
                alike = len({_digest(m) for m in models}) == 1
                for r, model, wanted in zip(ranks, models, live, strict=True):
                    if not wanted:
                        continue
                    name = f"stage{s}" + ("" if alike else f".rank{r.rank}")
                    name += f".part{k}" if len(r.files) > 1 else ""
                    path = self.folder / f"{name}.onnx"
                    if not alike or r is ranks[0]:
                        write_model(model, path)
                    self.steps.append({
                        "do": "run", "rank": r.rank, "file": path.name,
                        "inputs": [v.name for v in model.graph.inputs],
                        "outputs": [v.name for v in model.graph.outputs],
                    })  # fmt: skip
            done = upto
            self.steps += steps

    # -- values ------------------------------------------------------------------------------------
    def _in(self, r: _Rank, key: Key, s: int) -> str:
        """A value as the file at hand knows it."""
        file = r.file
        found = file.names.get(key)
        if found is not None:
            return found
        n = key.node
        home = r.made.get(key)
        if home is not None:
            name = self._given(home, key, s)
        elif key in r.values:
            name = r.values[key]
        elif n.op == "input":
            name = self._taken(r, key, s)
        else:
            return self._data(r, key, s)
        file.names[key] = file.writer.takes(name, n.dtype, self._local(key, s))
        return file.names[key]

    def _local(self, key: Key, s: int) -> tuple[int, ...]:
        return key.at.shape(shape_of(key.node), dict(self.program.stages[s].axes))

    def _given(self, home: _File, key: Key, s: int) -> str:
        """A value that a file made, as its result."""
        if key not in home.given:
            name = self._label(s, key, key.node.op)
            home.writer.gives(name, home.names[key], key.node.dtype, self._local(key, s))
            home.given[key] = name
        return home.given[key]

    def _out(self, r: _Rank, key: Key, s: int) -> str:
        """A value as its rank has it between files."""
        if key in r.values:
            return r.values[key]
        if key not in r.made:
            if key.node.op == "input":
                return self._taken(r, key, s)
            self._data(r, key, s)
        return self._given(r.made[key], key, s)

    def _taken(self, r: _Rank, key: Key, s: int) -> str:
        """A rank's part of an input."""
        n = key.node
        if key not in r.values:
            r.values[key] = n.name if key.at == WHOLE else self._label(s, key, n.name)
            rows_ = rows(shape_of(n), self._marks(s, n), key.at, self.program.stages[s].axes)
            self.steps.append({"do": "take", "rank": r.rank, "input": n.name,
                               "as": r.values[key], "shape": list(self._local(key, s)),
                               **self._part(rows_, self.grids[s], r.rank)})  # fmt: skip
        return r.values[key]

    def _data(self, r: _Rank, key: Key, s: int) -> str:
        """What stands in the file: a part of a weight, or of what depends on nothing."""
        n, file = key.node, r.file
        if n.op == "parameter":
            whole = held(n, self.wholes.get(n.name))
        elif n in self.own or n.op == "constant":
            whole = self._own(n)
        else:
            raise WhetError("a value is read before it is made", got=key.at, where=n)
        if key.at != WHOLE:
            row = self._parts(s, r.rank, key, whole)
            if not all(torch.equal(row[0], t) for t in row[1:]):
                raise NotExecutable("data that differs from one microbatch to the next", got=n)
            whole = row[0]
        plain = n.name if n.is_leaf and key.at == WHOLE else ""
        file.names[key] = file.writer.data(plain, whole) if plain else file.writer.constant(whole)
        r.made[key] = file
        return file.names[key]

    def _parts(self, s: int, rank: int, key: Key, whole: Tensor) -> list[Tensor]:
        """A rank's part of a whole value in each microbatch."""
        axes, grid = self.program.stages[s].axes, self.grids[s]
        rows_ = rows(tuple(whole.shape), self._marks(s, key.node), key.at, axes)
        return [
            part(whole, rows_, starts(rows_, grid.at(rank, m), axes))
            for m in range(self.program.strategy.microbatches)
        ]

    def _still(self, s: int, rank: int, key: Key) -> bool:
        """Whether a part of what depends on nothing is the same in all microbatches."""
        if key.node not in self.own:
            return False
        first, *others = self._parts(s, rank, key, self.own[key.node])
        return all(torch.equal(first, t) for t in others)

    def _marks(self, s: int, n: Node) -> tuple[tuple[int, ...], ...]:
        pieces = self.program.stages[s].pieces
        return next((p.marks[n] for p in pieces if n in p.marks), ())

    def _part(self, rows_: Sequence[Row], grid: Grid, rank: int) -> Json:
        return between.part(rows_, grid, rank, self.program.strategy.microbatches)

    # -- operations --------------------------------------------------------------------------------
    def _op(
        self, s: int, ranks: Sequence[_Rank], op: Op, pending: list[tuple[int, list[Json]]]
    ) -> None:
        if isinstance(op, Total):
            raise NotExecutable("something is counted over all microbatches", got=op.key.node)
        if isinstance(op, Compute):
            self._compute(s, ranks, op, pending)
            return
        kind = op.move.kind
        if kind == "drop" or (kind == "slice" and MICRO not in op.move.axes):
            for r in ranks:
                self._here(r, op, s)
            return
        if kind == "slice" and all(self._still(s, r.rank, op.key) for r in ranks):
            return  # each file holds its part as data
        if kind == "slice":
            steps = [self._cut(r, op, s) for r in ranks]
        else:
            steps = [self._moved(x, op, s) for x in self._lines(s, ranks, op.move.axes)]
        self._behind(ranks, steps, pending)

    def _lines(self, s: int, ranks: Sequence[_Rank], axes: tuple[str, ...]) -> list[list[_Rank]]:
        """The groups of ranks along some axes, each in its order."""
        by = {r.rank: r for r in ranks}
        lines = {tuple(self.grids[s].line(r.rank, axes)) for r in ranks}
        return [[by[x] for x in line] for line in sorted(lines)]

    def _behind(
        self, ranks: Sequence[_Rank], steps: list[Json], pending: list[tuple[int, list[Json]]]
    ) -> None:
        """Steps that follow the files so far; new files follow them."""
        pending.append((len(ranks[0].files), steps))
        for r in ranks:
            r.files.append(_File())

    def _compute(
        self, s: int, ranks: Sequence[_Rank], op: Compute, pending: list[tuple[int, list[Json]]]
    ) -> None:
        grid, n = self.grids[s], op.node
        counted = {a for a, cut in cuts_of(n).items() if cut.offset} if op.choice.cuts else set()
        micro = self.program.strategy.microbatches
        if micro > 1 and any(m == MICRO and a in counted for m, a, _ in op.choice.cuts):
            raise NotExecutable("what is computed depends on the number of the microbatch", got=n)
        parts = {r.rank: meant(n, op.choice, grid.axes, grid.at(r.rank, 0)) for r in ranks}
        first = parts[ranks[0].rank]
        if first.node is not None:
            for r in ranks:
                names = iter([None if k is None else self._in(r, k, s) for k in op.reads])
                args = [None if a is None else next(names) for a in n.args]
                node = parts[r.rank].node
                assert node is not None
                self._makes(r, op.key, r.file.writer.node(node, args))
            return
        local: dict[int, dict[str, tuple[str, DType]]] = {
            r.rank: {
                name: (self._in(r, k, s), k.node.dtype)
                for name, k in zip(first.names, op.reads, strict=True) if k is not None
            }
            for r in ranks
        }  # fmt: skip
        for k, last in enumerate(first.steps):
            for r in ranks:
                step = parts[r.rank].steps[k]
                given = {name: local[r.rank][name] for name in step.instance.operands}
                dtype = step.dtype or _kind(step.instance, step.out, given)
                made = written(r.file.writer, step.instance, step.out, dtype, given)
                local[r.rank][step.out] = made, dtype
            ways = [(how, axis) for how, axis in last.combine if axis != MICRO]
            if ways:
                self._combined(s, ranks, ways, last.out, local, parts, k, pending)
        for r in ranks:
            self._makes(r, op.key, local[r.rank][first.steps[-1].out][0])

    def _combined(
        self, s: int, ranks: Sequence[_Rank], ways: Sequence[tuple[str, str]], out: str,
        local: dict[int, dict[str, tuple[str, DType]]], parts: Mapping[int, Any], k: int,
        pending: list[tuple[int, list[Json]]],
    ) -> None:  # fmt: skip
        """An assignment inside a node that is combined over ranks: all of them go on behind it."""
        carried = {x for later in parts[ranks[0].rank].steps[k + 1 :]
                   for x in later.instance.operands} | {out}  # fmt: skip
        shapes = self._shapes(parts[ranks[0].rank], k)
        names: dict[str, str] = {x: self._name(x) for x in sorted(carried & set(shapes))}
        for r in ranks:
            for x, name in names.items():
                have, dtype = local[r.rank][x]
                r.file.writer.gives(name, have, dtype, shapes[x])
        steps = [
            {"do": "all_reduce", "how": how, "ranks": [r.rank for r in line], "value": names[out],
             "as": names[out]}
            for how, axis in ways for line in self._lines(s, ranks, (axis,))
        ]  # fmt: skip
        operands = set(parts[ranks[0].rank].names)
        keys = {r.rank: {v: key for key, v in r.file.names.items()} for r in ranks}
        again = {r.rank: {x: keys[r.rank].get(local[r.rank][x][0]) for x in operands
                          if x in local[r.rank]} for r in ranks}  # fmt: skip
        self._behind(ranks, steps, pending)
        for r in ranks:
            for x, name in names.items():
                dtype = local[r.rank][x][1]
                local[r.rank][x] = r.file.writer.takes(name, dtype, shapes[x]), dtype
            for x, key in again[r.rank].items():
                if key is not None and x in carried:
                    local[r.rank][x] = self._in(r, key, s), local[r.rank][x][1]

    def _shapes(self, meaning: Any, upto: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the assignments of a node so far."""
        found = {}
        for step in meaning.steps[: upto + 1]:
            found[step.out] = tuple(int(str(n)) for n in step.instance.shape(step.out))
        return found

    def _makes(self, r: _Rank, key: Key, name: str) -> None:
        r.file.names[key] = name
        r.made[key] = r.file
        r.values.pop(key, None)

    def _here(self, r: _Rank, op: Exchange, s: int) -> None:
        """A move that a rank makes alone."""
        move, w, axes = op.move, r.file.writer, self.program.stages[s].axes
        coords = self.grids[s].at(r.rank, 0)
        x = self._in(r, op.source, s)
        if move.kind == "drop":
            first = number(move.axes, coords, axes) == 0
            dtype, shape = op.key.node.dtype, self._local(op.key, s)
            zeros = torch.zeros((), dtype=torch_dtype(dtype))
            self._makes(
                r, op.key, x if first else w.op("Expand", w.constant(zeros), w.ints(*shape))
            )
            return
        (axis,) = move.axes
        before, after = rows_of(op, move.source, axes), rows_of(op, move.target, axes)
        want = move.target.on(axis)
        assert isinstance(want, tuple)
        k, length = place(before, *want), after[place(before, *want)].local
        start = coords[axis] * length
        view = w.reshape(x, [row.local for row in before])
        cut = w.op("Slice", view, w.ints(start), w.ints(start + length), w.ints(k), w.ints(1))
        self._makes(r, op.key, w.reshape(cut, self._local(op.key, s)))

    # -- between files -----------------------------------------------------------------------------
    def _cut(self, r: _Rank, op: Exchange, s: int) -> Json:
        """The part of one microbatch of a value that is the same in all."""
        value = self._out(r, op.source, s)
        name = r.values[op.key] = self._label(s, op.key, "cut")
        here = {"rank": r.rank, "value": value, "as": name, "shape": list(self._local(op.key, s))}
        return here | between.cut(op, self.grids[s], r.rank, self.program.strategy.microbatches)

    def _moved(self, line: Sequence[_Rank], op: Exchange, s: int) -> Json:
        """A collective of one group."""
        (value,) = {self._out(r, op.source, s) for r in line}
        name = self._label(s, op.key, "exchanged")
        for r in line:
            r.values[op.key] = name
        here = {"ranks": [r.rank for r in line], "value": value, "as": name}
        return here | between.moved(op, self.program.stages[s].axes)

    def _sent(self, number_: int, ranks: Sequence[_Rank]) -> list[Json]:
        """What the ranks of a stage send of a message."""
        m, by = self.program.messages[number_], {r.rank: r for r in ranks}
        return [
            step | {"value": self._out(by[step["from"]], m.source, m.sender)}
            for step in between.sent(self.routes, number_)
        ]

    def _received(self, s: int, ranks: Sequence[_Rank]) -> None:
        """What a stage receives, one name for each message."""
        for k, m in enumerate(self.program.messages):
            if m.receiver == s and m.read == "forward":
                self.steps += [between.joined(self.routes, k, r.rank) for r in ranks]
                for r in ranks:
                    r.values[m.key] = between.boundary(self.routes, k)


def _type(n: Node) -> Json:
    return {"dtype": n.dtype.value, "shape": list(shape_of(n))}


def _kind(instance: Instance, out: str, given: Mapping[str, tuple[str, DType]]) -> DType:
    return kind_of(instance, out, {k: d for k, (_, d) in given.items()})


def _digest(model: OnnxModel) -> str:
    """Equal for files of equal content."""
    made = hashlib.blake2b(
        repr((model.graph.inputs, model.graph.outputs, model.graph.nodes)).encode()
    )
    for name, t in model.graph.initializers.items():
        assert isinstance(t, Tensor)
        made.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        made.update(
            t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        )
    return made.hexdigest()
