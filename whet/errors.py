"""Errors that say what was expected, what came, where, and what to try.

Every error that a user of whet can meet is a `WhetError`. The command line prints its message and
nothing else (a traceback only under `--debug`), so the message alone has to be enough to go on.
"""

from __future__ import annotations


class WhetError(Exception):
    """An error with the four things a reader needs; any but the summary may be absent.

    Args:
        summary: one line, no final stop: what went wrong.
        expected: what would have been accepted.
        got: what came instead.
        where: the place: a file and line, a node, a record with the index marked.
        hint: what to try next.
    """

    def __init__(
        self,
        summary: str,
        *,
        expected: object = None,
        got: object = None,
        where: object = None,
        hint: object = None,
    ) -> None:
        self.summary = summary
        self.expected = expected
        self.got = got
        self.where = where
        self.hint = hint
        super().__init__(summary)

    def __str__(self) -> str:
        rows = (
            ("expected", self.expected),
            ("got", self.got),
            ("where", self.where),
            ("try", self.hint),
        )
        lines = [self.summary]
        for label, value in rows:
            if value is not None:
                head, *rest = str(value).splitlines() or [""]
                lines.append(f"  {label + ':':<10}{head}")
                lines += [" " * 12 + line for line in rest]
        return "\n".join(lines)


class RecordError(WhetError):
    """An operator record that does not parse, or cannot be bound to the operands it was given."""


class GraphError(WhetError):
    """A graph that is not well formed."""


class CaptureError(WhetError):
    """A model that cannot be brought in; carries the user's own line where there is one."""


class InputError(WhetError):
    """An argument given at run time that the program was not made for."""


class StoreError(WhetError):
    """A store that cannot be read or written."""


class UnsupportedError(WhetError):
    """Something that whet has no lowering for, met where skipping it was forbidden."""


class SearchError(WhetError):
    """A search that was set up wrongly, or whose journal cannot be read or replayed."""


class MissingError(WhetError):
    """A package that is not installed, and that only a part of whet needs."""


def first_line(fault: BaseException) -> str:
    """What a fault says, in a line; its kind where it says nothing."""
    return (str(fault).splitlines() or [type(fault).__name__])[0]
