"""
A Ctrl-C at each place where one can come: what tests of interrupts share.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Self

LONG = 30.0


class CtrlC:
    """
    Raises a KeyboardInterrupt where CPython looks for signals: as a function begins, or one that is not Python's ends.

    Args:
        number: At which of these places, the first is 1.
    """

    def __init__(self, number: int) -> None:
        self.left = number
        self._last: dict[int, int] = {}  # the last operation, by the identity of the frame
        self._entered: set[int] = set()  # frames that have called a function of Python

    def __enter__(self) -> Self:
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_frame(self, frame: FrameType, event: str, _: object) -> Any:
        self._entered.add(id(frame.f_back))
        if not str(frame.f_globals.get("__name__")).startswith(("parallel.", "threading")):
            return None
        frame.f_trace_opcodes = True
        self._last.pop(id(frame), None)
        self._pass()
        return self._go_on

    def _go_on(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            last = self._last.get(id(frame))
            self._last[id(frame)] = frame.f_lasti
            if last is not None and self._looks_after(frame, last):
                self._pass()
        return self._go_on

    def _looks_after(self, frame: FrameType, last: int) -> bool:
        """Tell whether that operation was a call, after which it looks; what is raised is raised by that operation."""
        code = frame.f_code
        if not dis.opname[code.co_code[last]].startswith("CALL"):
            return False
        is_pythons = id(frame) in self._entered
        self._entered.discard(id(frame))
        return not is_pythons and _handler(code, last) == _handler(code, frame.f_lasti)

    def _pass(self) -> None:
        self.left -= 1
        if self.left == 0:
            sys.settrace(None)
            raise KeyboardInterrupt


def _handler(code: CodeType, offset: int) -> int | None:
    """Return where an exception is handled that is raised at that place."""
    found: int | None = None
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]  # the format is not public either
        if entry.start <= offset < entry.end:
            found = entry.target
    return found


def returns_in_time(fn: Callable[[], object]) -> bool:
    """Tell whether *fn* comes back."""
    thread = threading.Thread(target=fn, daemon=True)
    thread.start()
    thread.join(LONG)
    return not thread.is_alive()
