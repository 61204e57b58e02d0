"""0-1 programs: choose columns, at the least cost, such that every row holds.

    minimize    sum(costs[j] * x[j])          x[j] in {0, 1}
    subject to  low <= sum(a * x[j] for j, a in terms) <= high

The only file that knows the solver (HiGHS, by Huangfu and Hall, Math. Prog. Comp. 2018).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from whet.errors import MissingError, SearchError


@dataclass(frozen=True, slots=True)
class Constraint:
    """One row: `low <= sum(coefficient * x[column]) <= high`."""

    terms: Mapping[int, float]
    low: float = -math.inf
    high: float = math.inf

    @classmethod
    def exactly_one(cls, columns: Collection[int]) -> Constraint:
        return cls(dict.fromkeys(columns, 1.0), 1.0, 1.0)

    @classmethod
    def at_least_one(cls, columns: Collection[int]) -> Constraint:
        return cls(dict.fromkeys(columns, 1.0), low=1.0)

    @classmethod
    def implies(cls, column: int, any_of: Collection[int]) -> Constraint:
        """If `column` is chosen, so is one of `any_of`; of itself it is no help."""
        if column in any_of:
            return cls({})
        return cls({**dict.fromkeys(any_of, 1.0), column: -1.0}, low=0.0)

    @classmethod
    def not_all(cls, columns: Collection[int]) -> Constraint:
        """Not every one of `columns` together: the cut that breaks a cycle."""
        return cls(dict.fromkeys(columns, 1.0), high=len(columns) - 1.0)

    @classmethod
    def other_than(cls, chosen: Collection[int], columns: int) -> Constraint:
        """Any of the `columns` columns but exactly these: the cut that asks for the next best."""
        terms = {column: 1.0 if column in chosen else -1.0 for column in range(columns)}
        return cls(terms, high=len(set(chosen)) - 1.0)

    def holds(self, chosen: Collection[int]) -> bool:
        total = sum(a for column, a in self.terms.items() if column in chosen)
        return self.low - 1e-6 <= total <= self.high + 1e-6


class Status(StrEnum):
    """What the solver could say."""

    OPTIMAL = "optimal"  # nothing is cheaper
    FEASIBLE = "feasible"  # time ran out; `bound` says how much cheaper it could be
    INFEASIBLE = "infeasible"  # no choice satisfies every row
    TIMEOUT = "timeout"  # time ran out before any choice was found


@dataclass(frozen=True, slots=True)
class Solution:
    """The chosen columns (empty unless optimal or feasible), their cost, and a proven lower bound
    on the cost of every choice."""

    status: Status
    chosen: frozenset[int] = frozenset()
    value: float = math.inf
    bound: float = -math.inf

    @property
    def found(self) -> bool:
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)


def minimize(
    costs: Sequence[float],
    constraints: Sequence[Constraint],
    *,
    seconds: float = math.inf,
    start: Collection[int] | None = None,
    gap: float = 0.0,
) -> Solution:
    """Choose columns at the least cost. Deterministic, on one thread, unless the time runs out.

    Args:
        costs: one finite number per column.
        constraints: the rows.
        seconds: time limit.
        start: a known choice to begin with, such as the present one.
        gap: enough is a choice whose cost is within this share of the bound.

    Raises:
        SearchError: a cost is not finite, a row names a column that is not there, or the solver
            fails.
        MissingError: the solver is not installed.
    """
    _validate(costs, constraints)
    try:
        import highspy
    except ImportError as error:
        raise MissingError(
            "integer programs need highspy",
            got=error,
            hint="pip install highspy -c constraints.txt",
        ) from error

    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(costs), len(constraints)
    program.col_cost_ = list(costs)
    program.col_lower_, program.col_upper_ = [0.0] * len(costs), [1.0] * len(costs)
    program.integrality_ = [highspy.HighsVarType.kInteger] * len(costs)
    program.row_lower_ = [row.low for row in constraints]
    program.row_upper_ = [row.high for row in constraints]
    starts: list[int] = [0]
    index: list[int] = []
    value: list[float] = []
    for row in constraints:
        index += row.terms.keys()
        value += row.terms.values()
        starts.append(len(index))
    program.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    program.a_matrix_.start_, program.a_matrix_.index_ = starts, index
    program.a_matrix_.value_ = value

    solver = highspy.Highs()
    options = {"output_flag": False, "threads": 1, "random_seed": 0, "mip_rel_gap": gap}
    if math.isfinite(seconds):
        options["time_limit"] = seconds
    for name, option in options.items():
        solver.setOptionValue(name, option)
    solver.passModel(program)
    if start is not None:
        guess = highspy.HighsSolution()
        guess.col_value = [1.0 if column in start else 0.0 for column in range(len(costs))]
        solver.setSolution(guess)
    solver.run()

    status, info = solver.getModelStatus(), solver.getInfo()
    kinds = highspy.HighsModelStatus
    if status == kinds.kInfeasible:
        return Solution(Status.INFEASIBLE)
    if status not in (kinds.kOptimal, kinds.kModelEmpty, kinds.kTimeLimit, kinds.kInterrupt):
        raise SearchError("the solver failed", got=solver.modelStatusToString(status))
    solved = status in (kinds.kOptimal, kinds.kModelEmpty)
    bound = float(info.mip_dual_bound) if math.isfinite(info.mip_dual_bound) else -math.inf
    values = solver.getSolution().col_value
    chosen = frozenset(column for column, x in enumerate(values) if x > 0.5)
    # A choice made when time ran out need not be one that satisfies the rows.
    if not solved and not (values and all(row.holds(chosen) for row in constraints)):
        return Solution(Status.TIMEOUT, bound=bound)
    total = math.fsum(costs[column] for column in chosen)
    status = Status.OPTIMAL if solved else Status.FEASIBLE
    return Solution(status, chosen, total, total if solved and not gap else min(bound, total))


def _validate(costs: Sequence[float], constraints: Sequence[Constraint]) -> None:
    for column, cost in enumerate(costs):
        if not math.isfinite(cost):
            raise SearchError(
                "a column's cost is not finite",
                got=cost,
                where=f"column {column}",
                hint="leave out what cannot run, or forbid it by a constraint",
            )
    for number, row in enumerate(constraints):
        for column in row.terms:
            if not 0 <= column < len(costs):
                raise SearchError(
                    "a constraint names a column that is not there",
                    expected=f"0 <= column < {len(costs)}",
                    got=column,
                    where=f"constraint {number}",
                )
