"""A kernel in the making: moves made so far, and what was refused on the way."""

from __future__ import annotations

from collections.abc import Iterator

from whet.ir import expr as ex
from whet.kernel.legal import Illegal
from whet.kernel.loops import Kernel, Loop, Stmt, leaves, walk
from whet.kernel.move import Move
from whet.kernel.order import Split
from whet.kernel.schedule import Schedule, attempt


class Draft:
    """See the module's docstring.

    Attributes:
        kernel: after the moves.
        moves: made so far.
        refused: why other moves could not be made, in order.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.moves: list[Move] = []
        self.refused: list[Illegal] = []

    @property
    def schedule(self) -> Schedule:
        return tuple(self.moves)

    def copy(self) -> Draft:
        """Another one to go on with."""
        other = Draft(self.kernel)
        other.moves, other.refused = list(self.moves), list(self.refused)
        return other

    def take(self, other: Draft) -> None:
        """Go on where another one is."""
        self.kernel, self.moves, self.refused = other.kernel, other.moves, other.refused

    def do(self, move: Move) -> bool:
        """Make a move; False where it is illegal."""
        made = attempt(self.kernel, move)
        if isinstance(made, Illegal):
            self.refused.append(made)
            return False
        self.kernel = made
        self.moves.append(move)
        return True

    def split(self, var: str, factor: int) -> tuple[str, str]:
        """Steps and places of a loop that is split; ("", var) where it is no longer than that."""
        before = self.kernel.loops
        if not self.do(Split(var, factor)):
            return "", var
        new = [v for v in self.kernel.loops if v not in before]
        return (new[0], new[1]) if len(new) == 2 else ("", new[0] if new else var)


def nest(s: Stmt) -> list[Loop]:
    """A statement's loops as far as each is all that the one before holds."""
    found: list[Loop] = []
    while isinstance(s, Loop):
        found.append(s)
        if len(s.body) != 1:
            break
        (s,) = s.body
    return found


def turns(loop: Loop) -> int:
    """Iterations of a loop, where they are known; else 1."""
    return loop.extent if isinstance(loop.extent, int) else 1


def points(k: Kernel) -> int:
    """How many stores and updates a kernel makes."""
    return sum(count for _, count in weighed(k))


def weighed(k: Kernel) -> Iterator[tuple[Stmt, int]]:
    """Every store and update, and how often it is made."""
    for leaf, path, _ in leaves(k.body):
        count = 1
        for s in path:
            count *= turns(s) if isinstance(s, Loop) else 1
        yield leaf, count


def weight(e: ex.Expr) -> int:
    """How much computing an expression takes: 1 for arithmetic, more for what is slow."""
    total = 0
    for x in ex.walk(e):
        match x:
            case ex.Call(fn, args) if any(True for a in args for _ in ex.loads(a)):
                total += 1 if fn in ex.COMPARISON | ex.LOGIC else COSTS.get(fn, 16)
    return total


def siblings(k: Kernel) -> Iterator[tuple[Stmt, ...]]:
    """Every statement list, outermost first."""
    yield k.body
    for s in walk(k.body):
        if isinstance(s, Loop):
            yield s.body


COSTS = {
    "+": 1,
    "-": 1,
    "*": 1,
    "minimum": 1,
    "maximum": 1,
    "/": 6,
    "//": 1,
    "%": 1,
    "sqrt": 8,
    "rsqrt": 8,
    "abs": 1,
    "neg": 1,
}
