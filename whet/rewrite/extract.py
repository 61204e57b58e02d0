"""The cheapest program of an e-graph, by an integer program over kernels.

    minimize    sum of the seconds of chosen columns, conversions of layouts among them
    subject to  every result is made, in the layout of the border
                who reads an item has somebody make it; an item is made once at most
                no chosen columns wait for each other in a circle          cut when one is found

Columns are kernels, not operators: see `whet.rewrite.columns`. A value that several kernels compute
inside is computed several times, one that several read is made once. What depends on no input is
free at run time and costs memory. Cycles are cut lazily, as for travelling salesmen; each cut names
all columns that could close the same circle of classes. The next best answers come from the same
program with the answer before cut off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from whet.ir.graph import Node, rebuilt, topological
from whet.ir.types import TensorType
from whet.rewrite.columns import ROWS, Column, Columns
from whet.search import Cost, Source
from whet.search.integer import Constraint, Status, minimize

Item = tuple[Node, str]
Border = Callable[[TensorType], str]
Convert = Callable[[TensorType, str, str], Cost]

MEMORY = 1e-16  # seconds that a byte of weights made ahead of time counts: a tie is decided by it
_UNIT = 1e6  # the program's costs are in microseconds, as solvers have absolute tolerances
FUSED = 0.3  # of its time is what an operator on single elements costs that is fused with others
_CUTS = 40
_GAP = 0.005  # of the answer: many groupings of the same kernels cost almost the same


@dataclass(frozen=True, slots=True)
class Extraction:
    """One program of an e-graph.

    Attributes:
        made: node of each root, in order.
        columns: kernels in an order in which they can run.
        cost: the sum of their costs and of the conversions between them.
        bound: seconds that no program of this e-graph is below, as far as is known.
        memory: bytes of weights made ahead of time.
        cuts: circles that were cut off.
    """

    made: tuple[Node, ...]
    columns: tuple[Column, ...]
    cost: Cost
    bound: float = 0.0
    memory: int = 0
    cuts: int = 0

    @property
    def gap(self) -> float:
        """How far the cost may be from the best, as a share of it; 0 where it is the best."""
        seconds = self.cost.seconds
        return max(0.0, (seconds - self.bound) / seconds) if seconds else 0.0


@dataclass
class Extractor:
    """The integer program of one e-graph.

    Args:
        columns: of the e-graph.
        roots: what must be made.
        border: layout in which values enter and leave.
        convert: what bringing a value from one layout to another costs.
    """

    columns: Columns
    roots: Sequence[Node]
    border: Border = lambda _: ROWS
    convert: Convert = lambda type, before, after: Cost.NONE
    grown: bool = True
    _costs: list[float] = field(init=False, default_factory=list)
    _rows: list[Constraint] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        find = self.columns.classes.find
        self._want = [find(r) for r in self.roots]
        self._made: dict[Item, list[int]] = {}
        self._kernels: list[Column | None] = []  # None: a conversion
        self._reads: list[list[Item]] = []
        self._out: list[list[Item]] = []
        self._cut = 0
        self._gather()
        self._memory()
        self._state()

    # -- the program -----------------------------------------------------------------------------
    def _gather(self) -> None:
        """Columns of every class that a result may need, conversions after them."""
        fixed, todo, seen = self.columns.fixed, list(self._want), set[Node]()
        wanted: dict[Item, None] = {}
        gathered: set[int] = set()
        for r in self._want:
            wanted[r, self.border(r.type)] = None
        while todo:
            cls = todo.pop()
            if cls in seen or cls in fixed:
                continue
            seen.add(cls)
            if any(e.node.is_leaf for e in self.columns.members[cls]):
                self._made.setdefault((cls, self.border(cls.type)), []).append(
                    self._column(None, [(cls, self.border(cls.type))], [], 0.0)
                )
                continue
            for column in self.columns.of(cls) if self.grown else self.columns.single(cls):
                if id(column) in gathered:
                    continue
                gathered.add(id(column))
                layouts = column.offer.reads or (ROWS,) * len(column.reads)
                reads = list(zip(column.reads, layouts, strict=True))
                wanted.update(dict.fromkeys(reads))
                items = [(c, column.offer.out) for c in column.outs]
                share = 1.0 if self.grown or column.is_heavy else FUSED
                number = self._column(column, items, reads, share * column.seconds)
                for item in items:
                    self._made.setdefault(item, []).append(number)
                todo += column.reads
        for cls, layout in wanted:
            if cls in fixed:
                continue
            for other in [i for i in self._made if i[0] is cls and i[1] != layout]:
                seconds = self.convert(cls.type, other[1], layout).seconds
                number = self._column(None, [(cls, layout)], [other], seconds)
                self._made.setdefault((cls, layout), []).append(number)

    def _column(
        self, kernel: Column | None, out: list[Item], reads: list[Item], seconds: float
    ) -> int:
        self._kernels.append(kernel)
        self._out.append(out)
        self._reads.append([i for i in reads if i[0] not in self.columns.fixed])
        self._costs.append(seconds * _UNIT)
        return len(self._costs) - 1

    def _memory(self) -> None:
        """A price for each class of weights that is made ahead of time and read at run time."""
        self._weights: dict[int, tuple[int, list[int]]] = {}
        users: dict[Node, list[int]] = {}
        for k, kernel in enumerate(self._kernels):
            for w in kernel.fixed if kernel is not None else ():
                if not self.columns.fixed[w].node.is_leaf:
                    users.setdefault(w, []).append(k)
        for w, readers in users.items():
            size = w.type.nbytes if isinstance(w.type.nbytes, int) else 0
            number = len(self._costs)
            self._costs.append(size * MEMORY * _UNIT)
            self._weights[number] = size, readers
            self._rows.append(Constraint({**dict.fromkeys(readers, -1.0),
                                          number: float(len(readers))}, low=0.0))  # fmt: skip

    def _state(self) -> None:
        for r in dict.fromkeys(self._want):
            if r not in self.columns.fixed:
                self._rows.append(
                    Constraint.at_least_one(self._made.get((r, self.border(r.type)), ()))
                )
        for makers in self._made.values():
            if len(makers) > 1:
                self._rows.append(Constraint(dict.fromkeys(makers, 1.0), high=1.0))
            needs: dict[tuple[Item, bool], list[int]] = {}
            for k in makers:
                for read in self._reads[k]:
                    needs.setdefault((read, not self._is_source(k)), []).append(k)
            for (read, converts), users in needs.items():
                # A conversion needs a kernel, or two of them could do without any.
                sources = [
                    k for k in self._made.get(read, ()) if not converts or self._is_source(k)
                ]
                terms = dict.fromkeys(sources, 1.0)
                for k in users:
                    terms[k] = terms.get(k, 0.0) - 1.0
                self._rows.append(Constraint(terms, low=0.0))

    def _is_source(self, k: int) -> bool:
        return self._kernels[k] is not None or not self._reads[k]

    # -- solving ---------------------------------------------------------------------------------
    def best(
        self,
        count: int = 1,
        *,
        seconds: float = math.inf,
        programs: Sequence[Collection[Node]] = (),
    ) -> Iterator[Extraction]:
        """The cheapest programs, cheapest first, at most `count`, no two of the same kernels.

        Args:
            seconds: of the solver, for each.
            programs: known ones; the solver begins with the best of them.
        """
        known = [s for s in self._starts(programs, seconds) if s is not None]
        start = min(known, key=self._total, default=None)
        for _ in range(count):
            answer = self._solved(start, seconds)
            if answer is None:
                return
            chosen, bound = answer
            yield self._extraction(chosen, bound)
            kernels = [k for k in chosen if k < len(self._kernels)]
            self._rows.append(Constraint.not_all(kernels))
            start = None

    def _starts(
        self, programs: Sequence[Collection[Node]], seconds: float
    ) -> Iterator[Collection[int] | None]:
        """For each known program the best grouping of it into kernels, and a greedy choice."""
        yield self.greedy()
        for nodes in programs:
            inside = self._within(nodes)
            greedy = self.greedy(inside)
            if greedy is not None:
                others = [k for k in range(len(self._kernels)) if k not in inside]
                answer = self._solved(
                    greedy, seconds / 4, Constraint(dict.fromkeys(others, 1.0), high=0.0)
                )
                yield answer[0] if answer is not None else greedy

    def _within(self, nodes: Collection[Node]) -> set[int]:
        """The columns that compute what a program does, in any grouping."""
        find, classes = self.columns.classes.find, self.columns.classes
        ways = {
            (find(n), n.op, n.attrs, *(None if a is None else find(a) for a in n.args))
            for n in nodes if n in classes
        }  # fmt: skip
        return {
            k for k, c in enumerate(self._kernels)
            if c is None
            or all((cls, e.node.op, e.node.attrs, *e.args) in ways for cls, e in c.body.items())
        }  # fmt: skip

    def _total(self, chosen: Collection[int]) -> float:
        return math.fsum(self._costs[k] for k in chosen)

    def _solved(
        self, start: Collection[int] | None, seconds: float, *also: Constraint
    ) -> tuple[frozenset[int], float] | None:
        """The chosen columns and a bound on the cost, in at most so many seconds; the start where
        nothing better is found in time."""
        ends = time.monotonic() + seconds
        for _ in range(_CUTS):
            left = ends - time.monotonic()
            if left <= 0:
                break
            solution = minimize(
                self._costs, [*self._rows, *also], seconds=left, start=start, gap=_GAP
            )
            if not solution.found:
                break
            circles = list(self._circles(solution.chosen))
            if not circles:
                bound = solution.bound / _UNIT if math.isfinite(solution.bound) else 0.0
                return self._used(solution.chosen), bound
            self._cut += len(circles)
            self._rows += circles
            if solution.status is not Status.OPTIMAL:
                break
        if start is not None and not list(self._circles(frozenset(start))):
            return frozenset(start), 0.0
        return None

    def _circles(self, chosen: Collection[int]) -> Iterator[Constraint]:
        """A cut for each circle that chosen columns wait in."""
        maker = {i: k for k in sorted(chosen) if k < len(self._kernels) for i in self._out[k]}
        state: dict[Item, int] = {}  # 1: on the way, 2: done
        for begin in maker:
            path: list[Item] = []
            stack = [(begin, False)]
            while stack:
                item, leaving = stack.pop()
                if leaving:
                    state[item] = 2
                    path.pop()
                    continue
                if state.get(item) == 1:
                    yield self._circle(path[path.index(item) :])
                    continue
                if state.get(item) == 2 or item not in maker:
                    continue
                state[item] = 1
                path.append(item)
                stack.append((item, True))
                stack += [(r, False) for r in self._reads[maker[item]]]

    def _circle(self, items: Sequence[Item]) -> Constraint:
        """Each item has one maker at most, so these makers cannot all be chosen from."""
        terms: dict[int, float] = {}
        for item, read in zip(items, (*items[1:], items[0]), strict=True):
            terms |= {k: 1.0 for k in self._made[item] if read in self._reads[k]}
        return Constraint(terms, high=len(items) - 1.0)

    def greedy(self, allowed: Collection[int] | None = None) -> Collection[int] | None:
        """A choice without circles: for each item the maker that is cheapest with all it needs,
        as if nothing were shared. None where a result has no maker among those allowed."""
        price: dict[Item, float] = {}
        maker: dict[Item, int] = {}
        users: dict[Item, list[int]] = {}
        for k, reads in enumerate(self._reads):
            for r in reads:
                users.setdefault(r, []).append(k)
        work = list(range(len(self._reads)))
        while work:
            later: list[int] = []
            for k in work:
                if allowed is not None and k not in allowed:
                    continue
                total = self._costs[k] + sum(price.get(r, math.inf) for r in self._reads[k])
                # Every kernel takes some time, so nothing is ever cheaper by way of itself.
                total += 1e-6
                for item in self._out[k]:
                    if total < price.get(item, math.inf):
                        price[item], maker[item] = total, k
                        later += users.get(item, ())
            work = list(dict.fromkeys(later))
        chosen: set[int] = set()
        todo = [(r, self.border(r.type)) for r in self._want if r not in self.columns.fixed]
        while todo:
            item = todo.pop()
            if item not in maker:
                return None
            if maker[item] not in chosen:
                chosen.add(maker[item])
                todo += self._reads[maker[item]]
        return frozenset(chosen | self._loaded(chosen))

    # -- the answer ------------------------------------------------------------------------------
    def _used(self, chosen: Collection[int]) -> frozenset[int]:
        """Those of the chosen columns that a result needs."""
        maker = {i: k for k in sorted(chosen) if k < len(self._kernels) for i in self._out[k]}
        used: set[int] = set()
        todo = [(r, self.border(r.type)) for r in self._want if r not in self.columns.fixed]
        while todo:
            k = maker[todo.pop()]
            if k not in used:
                used.add(k)
                todo += self._reads[k]
        return frozenset(used | self._loaded(used))

    def _loaded(self, chosen: Collection[int]) -> set[int]:
        """The weights that chosen kernels read."""
        return {n for n, (_, readers) in self._weights.items() if any(k in chosen for k in readers)}

    def _extraction(self, chosen: frozenset[int], bound: float) -> Extraction:
        maker = {i: k for k in sorted(chosen) if k < len(self._kernels) for i in self._out[k]}
        new: dict[Node, Node] = {}
        columns: list[Column] = []
        done: set[int] = set()
        stack = [(maker[r, self.border(r.type)], False)
                 for r in reversed(self._want) if r not in self.columns.fixed]  # fmt: skip
        total = Cost(0.0, 0.0, Source.MEASURED)
        while stack:
            k, ready = stack.pop()
            if k in done:
                continue
            if not ready:
                stack.append((k, True))
                stack += [(maker[i], False) for i in reversed(self._reads[k])]
                continue
            done.add(k)
            kernel = self._kernels[k]
            if kernel is not None:
                columns.append(kernel)
                total = total + kernel.offer.cost
                for cls, node in self._built(kernel, new):
                    new.setdefault(cls, node)
            elif self._reads[k]:
                (before,), (after,) = self._reads[k], self._out[k]
                total = total + self.convert(after[0].type, before[1], after[1])
            else:
                ((cls, _),) = self._out[k]
                new[cls] = next(e.node for e in self.columns.members[cls] if e.node.is_leaf)
        made = tuple(new[r] if r in new else self._ahead(r, new) for r in self._want)
        memory = sum(self._weights[k][0] for k in chosen if k in self._weights)
        return Extraction(made, tuple(columns), total, bound, memory, self._cut)

    def _built(self, kernel: Column, new: Mapping[Node, Node]) -> Iterator[tuple[Node, Node]]:
        inside: dict[Node, Node] = dict(new)
        for cls in kernel.order:
            e = kernel.body[cls]
            args = [None if a is None else inside.get(a) or self._ahead(a, inside) for a in e.args]
            inside[cls] = rebuilt(e.node, args)
        yield from ((cls, inside[cls]) for cls in kernel.outs)

    def _ahead(self, cls: Node, known: Mapping[Node, Node]) -> Node:
        """What is known ahead of time, by the fewest operators."""
        done: dict[Node, Node] = {}
        stack = [(cls, False)]
        while stack:
            c, ready = stack.pop()
            if c in done:
                continue
            e = self.columns.fixed[c]
            if ready:
                done[c] = rebuilt(e.node, [None if a is None else done[a] for a in e.args])
                continue
            stack.append((c, True))
            stack += [(a, False) for a in e.args if a is not None]
        return done[cls]


def extract(
    columns: Columns,
    programs: Sequence[Collection[Node]],
    roots: Sequence[Node],
    *,
    border: Border = lambda _: ROWS,
    convert: Convert = lambda type, before, after: Cost.NONE,
    count: int = 1,
    seconds: float = math.inf,
    rounds: int = 2,
) -> list[Extraction]:
    """The cheapest programs of an e-graph, cheapest first.

    First programs are proposed, by an integer program over single e-nodes in which what computes
    elements one by one costs little, as it will be fused. Columns then grow in these and in known
    programs, and the program over kernels chooses among all of them, mixing freely. Its answer is a
    program in which columns can grow as well: it is solved again while that helps.

    Args:
        programs: the nodes of known programs, the original among them: none of them is cheaper.
        seconds: of the solver, each time.
        rounds: how often kernels are chosen at most.
    """
    proposer = Extractor(columns, roots, border, convert, grown=False)
    proposed = [
        topological(e.made) for e in proposer.best(1, seconds=seconds / 2, programs=programs)
    ]
    programs = [*programs, *proposed]
    for nodes in programs:
        columns.follow(nodes)
    found: list[Extraction] = []
    for _ in range(rounds):
        last = found
        extractor = Extractor(columns, roots, border, convert)
        found = list(extractor.best(count, seconds=seconds, programs=programs))
        if last and (not found or last[0].cost.seconds < found[0].cost.seconds):
            found = last
        if not found or (last and found[0].cost.seconds > 0.999 * last[0].cost.seconds):
            break
        programs = [*programs, topological(found[0].made)]
        if not columns.follow(programs[-1]):
            break
    return found
