"""
Functions that are told what happens in a registry: `Registry.on`, and the table `[on]` of a configuration.

    a call ends ──▶ Watch ──▶ event ──▶ _inbox ──▶ one callback thread ──▶ each function, one after the other

Guarantees:
- Events come in the order in which they happened, one after the other.
- A function that raises changes nothing else: its error is logged.
- A call that a hook makes tells no hooks, so that they don't go round in circles.
- Hooks refer to no registry, and run in a context of their own: neither keeps one alive that is forgotten.
- Who only watches hasn't looked at a failure: one that nobody else looks at is reported as ever.
- Without a hook for calls, calls cost nothing more.

State: `_hooks`, a tuple that is replaced as a whole under `_lock`; `_inbox`, worked off by who holds `_turn`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, Final, TypeAlias, cast

from parallel.checks import did_you_mean
from parallel.context import WITHIN, Dispatcher, Home, Within
from parallel.coroutines import run_coroutine
from parallel.delivery import Errand, Feed
from parallel.events import EVENTS, OUTCOMES, STEPS, CallCancelled, CallEvent, CallFailed, CallSucceeded, Event
from parallel.outcomes import CANCELLED, Outcome, is_coroutine
from parallel.states import State
from parallel.trail import CAUSE, HOOK, id_of

LOGGER = logging.getLogger("parallel")

_IN_HOOK: Final[ContextVar[bool]] = ContextVar("parallel.in_hook", default=False)

Hook: TypeAlias = Callable[[Any], object]
"""A function that gets events of the kind for which it was registered."""


class Hooks:
    """
    The hooks of one registry.

    Args:
        callbacks: Who runs them.
    """

    def __init__(self, callbacks: Dispatcher) -> None:
        self._callbacks = callbacks
        self._lock = threading.RLock()  # a `__del__`, or a signal handler, may come in between
        self._hooks: tuple[tuple[type[Event], Hook], ...] = ()
        self._begin()

    def _begin(self) -> None:
        self._inbox: deque[tuple[list[Hook], Event, Home | None]] = deque()
        self._turn = threading.Lock()  # held by who calls hooks, never waited for

    def add(self, event: str, hook: Hook) -> None:
        """
        Have *hook* called with each event of that name.

        Raises:
            ValueError: There is no such event.
            TypeError: *hook* can't be called.
        """
        kind = kind_of(event)
        if not callable(hook):
            raise TypeError(f"expected a function that is called with each event, found {hook!r}")
        with self._lock:
            self._hooks = (*self._hooks, (kind, hook))

    def discard(self, event: str, hook: Hook) -> None:
        """Have *hook* called no more with events of that name; nothing happens if it wasn't."""
        kind = kind_of(event)
        with self._lock:
            self._hooks = tuple(each for each in self._hooks if each != (kind, hook))

    @property
    def of_calls(self) -> Hooks | None:
        """These hooks, if there are any that calls tell by themselves."""
        return self if any(issubclass(kind, CallEvent) and kind in OUTCOMES for kind, _ in self._hooks) else None

    @property
    def of_steps(self) -> bool:
        """Whether there are any for what has to be followed."""
        return any(kind in STEPS for kind, _ in self._hooks)

    def watch(self, call: State[Any], task: str, pool: str, registry: Home | None) -> None:
        """Tell how *call* ends, which is made in that registry; None: the default one."""
        if not _IN_HOOK.get():
            call.add(_Watch(call, self, task, pool, registry))

    def tell(self, event: Event, registry: Home | None) -> None:
        """Have the hooks of this event called, on a callback thread; the calls that they make go to *registry*."""
        hooks = [hook for kind, hook in self._hooks if isinstance(event, kind)]
        if not hooks or _IN_HOOK.get():
            return
        self._inbox.append((hooks, event, registry))
        if self._turn.acquire(blocking=False):
            try:
                self._callbacks.dispatch(Errand(self._work_off))
            except Exception:
                self._inbox.clear()
                self._turn.release()
                LOGGER.exception("no callback thread could be had: hooks were not told %r", event)

    def _work_off(self, _: Dispatcher) -> None:
        """Holding the turn: call the hooks for all that has happened, in order; then let go of it."""
        while True:
            while self._inbox:
                Context().run(_call_each, *self._inbox.popleft())
            self._turn.release()
            # (*) who comes now finds it free; who came before has left its event
            if not self._inbox or not self._turn.acquire(blocking=False):
                return

    def is_owned(self) -> bool:
        """Tell whether this thread is in the middle of a change: a signal handler may ask."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]  # as Condition does

    def after_fork_in_child(self) -> None:
        """Let go of locks that another thread may have held, and of what the parent is to tell."""
        self._lock = threading.RLock()
        self._begin()


class _Watch(Feed):
    """The tie of a call to the hooks that watch it."""

    __slots__ = ("_hooks", "_pool", "_registry", "_task")
    adopts = False
    looks_on = True

    def __init__(self, call: State[Any], hooks: Hooks, task: str, pool: str, registry: Home | None) -> None:
        super().__init__(call, call)
        self._hooks = hooks
        self._task = task
        self._pool = pool
        self._registry = registry

    def pass_on(self, outcome: Outcome) -> State[Any] | None:
        """Tell the end; no future ends by that."""
        error = outcome[1]
        event: Event
        number = id_of(self.source)
        if error is CANCELLED:
            event = CallCancelled(self._pool, self._task, call_id=number)
        elif error is not None:
            event = CallFailed(self._pool, self._task, error, call_id=number)
        else:
            event = CallSucceeded(self._pool, self._task, outcome[0], call_id=number)
        self._hooks.tell(event, self._registry)
        return None


def kind_of(event: str) -> type[Event]:
    """
    Return the class of events of that name.

    Raises:
        ValueError: There is none.
    """
    kind = EVENTS.get(cast(Any, event)) if isinstance(cast(object, event), str) else None
    if kind is None:
        raise ValueError(f"no event {event!r}{did_you_mean(event, EVENTS)}; known: {', '.join(EVENTS)}")
    return kind


def _call_each(hooks: list[Hook], event: Event, registry: Home | None) -> None:
    """Call the hooks, one after the other, in a context of their own; a coroutine function to its end."""
    WITHIN.set(None if registry is None else Within(registry))
    _IN_HOOK.set(True)
    CAUSE.set(HOOK)
    for hook in hooks:
        try:
            made = hook(event)
            if is_coroutine(made):
                run_coroutine(made)
        except BaseException:
            LOGGER.exception("exception in a hook for %s: %r", event.event, hook)
