"""
Kind `ray`: a Ray cluster that is there, or one on this machine.

    submit() ──▶ packed ──▶ `remote(run_packet).remote(packet)`, on a loop of ours ──▶ a worker process of Ray's ──▶
                                                     its future, on a thread of Ray's ──▶ Future ──▶ what follows

Guarantees:
- Ray runs no call again by itself: whether that may be, is for the pool to say.
- A call that runs can be ended by force: it has its worker process for itself.
- A head that is gone breaks the pool, before Ray's own client, which waits for a minute, ends the program.

Source: Ray's documentation of its core; what its client does without a head was seen with Ray 2.60.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future as StandardFuture
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from importlib import import_module
from itertools import islice
from math import ceil
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

from parallel.context import Dispatcher
from parallel.elsewhere import is_ray_address
from parallel.gates import OnFull
from parallel.machine import cpus
from parallel.pools.base import OnExit, check_workers, exit_before_others
from parallel.pools.distant.board import NAMESPACE, Board, BoardLine, Told
from parallel.pools.distant.connection import ANY, CONNECTION, Joined
from parallel.pools.distant.driver import Driver, Events, Loss, aside, refuse_in_forks
from parallel.pools.distant.packets import Answer, Bundle, Packet, Supply, origin
from parallel.pools.distant.pool import DistantPool
from parallel.pools.distant.uploads import sweep
from parallel.pools.distant.worker import run
from parallel.pools.process.wire import POSTED
from parallel.sizes import Size, size, sized

LOGGER = logging.getLogger("parallel")

WINDOW: Final = 16
"""Calls that may be with Ray besides twice as many as its workers run. It has no priorities: the others wait here."""

PAUSES: Final = (0.002, 0.02)
"""Seconds between two looks for answers, while there is more to do than workers can begin with: at least, at most."""

POLLED: Final = 100
"""Answers that are looked for at a time, the oldest calls first."""

LARGE: Final = 1 << 20
"""Bytes from which what a call needs is put into Ray's store by itself, on another thread."""

LOCAL: Final = (None, "local")
"""Addresses for which a cluster is started, with room for as many calls as the pool is to run at a time."""

PATIENCE: Final = 10.0
"""Seconds that a head may take to answer at the start."""

LOOKS: Final = 1.0
"""Seconds between two looks at the cluster."""

GONE: Final = 20.0
"""Seconds without an answer of the head until the pool is broken; Ray waits for 60, and then ends the program."""

_LOST: Final = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "OwnerDiedError", "ObjectLostError")
"""Names of Ray's errors, and of their bases, that mean that a worker is no more, or what it has returned."""

_BROKEN: Final = ("LocalRayletDiedError", "RaySystemError")
"""Likewise, that Ray can't go on here."""


class Options(NamedTuple):
    """
    What is said about the cluster, and about the calls there; see `RayPool`.
    """

    address: str | None
    max_workers: int | None
    num_cpus: float
    num_gpus: float
    memory: int | None
    resources: Mapping[str, float]
    runtime_env: Mapping[str, Any] | None

    def asked(self) -> dict[str, float]:
        """Return what a call takes of a node, as Ray calls it."""
        found = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory or 0, **self.resources}
        return {name: float(amount) for name, amount in found.items() if amount}


class RayPool(DistantPool):
    """
    A pool that runs its calls on a Ray cluster.

    A process has one connection to Ray: its pools share it, and use that of the program if there is one.

    Args:
        address: The cluster's, such as `head:6379`, or `auto` for the one that this machine belongs to; None: one is
            started here, if this process is not connected yet.
        max_workers: Calls at a time; None: as many as there is room for. A cluster that is started here has room for so
            many; None: as many as CPUs.
        num_cpus: CPUs that a call takes of its node, 0 for none; None: one.
        num_gpus: GPUs, likewise; None: none.
        memory: Bytes, or a size such as `2GB`, that a call takes of its node; None: any.
        resources: What else it takes, such as `{"license": 1}`; what no node has is refused.
        runtime_env: What the workers have besides, as Ray describes it: `{"pip": ["pillow"]}`.
        initializer: Called once in each worker process, before the first call. If it raises, the pool is broken.
        initargs: What it is called with.
        upload: Names of modules that the workers don't have, such as `package.module`: each is sent, with its top-level
            package, to each worker process once. What can't be found breaks the pool.
        context: Import strings of the context variables whose values travel with each call.
        max_pending: Calls from outside that may wait; None: any number.
        on_full: What becomes of one more: its caller waits (`block`), gets a `PoolFullError` (`raise`) or runs it
            itself (`run`).
        on_exit: What becomes of what it has accepted when the program ends: all is run (`wait`), or what waits is
            cancelled, and what runs is asked to end (`cancel`).
        name: The pool's name, for messages.
        callbacks: Who runs what follows a call; None: the registry's callback threads.
        configuration: For registries: their `Config`, pickled, for what its calls call. None: there is none.

    Raises:
        TypeError, ValueError: An argument is none of these.
    """

    kind: ClassVar[str] = "ray"

    def __init__(
        self,
        address: str | None = None,
        max_workers: int | None = None,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: Size | None = None,
        resources: Mapping[str, float] | None = None,
        runtime_env: Mapping[str, Any] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        upload: Sequence[str] = (),
        context: Sequence[str] = (),
        max_pending: int | None = None,
        on_full: OnFull = "block",
        on_exit: OnExit = "wait",
        name: str = "",
        callbacks: Dispatcher | None = None,
        configuration: bytes | None = None,
    ) -> None:
        if not isinstance(address, str | None):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may not check types
            raise TypeError(f"address must be a str or None, found {address!r}; the number of workers is max_workers=")
        if address is not None and not is_ray_address(address):
            raise ValueError(f"address must be as 'head:6379', or 'auto'; found {address!r}")
        if max_workers is not None:
            check_workers(max_workers, 1)
        self._options = Options(
            address,
            max_workers,
            1 if num_cpus is None else num_cpus,
            num_gpus or 0,
            None if memory is None else size(memory),
            dict(resources or {}),
            runtime_env,
        )
        self.is_here = address is None
        super().__init__(
            initializer=initializer,
            initargs=initargs,
            upload=upload,
            context=context,
            max_pending=max_pending,
            on_full=on_full,
            on_exit=on_exit,
            name=name,
            callbacks=callbacks,
            configuration=configuration,
        )

    def _new_driver(self) -> RayDriver:
        return RayDriver(self.label, self._options)


def run_packet(packet: bytes | Packet, *attached: tuple[str, Bundle]) -> bytes | Answer:
    """Run a call, on a worker; see `run`."""
    answer = run(cast(Packet, pickle.loads(packet)) if isinstance(packet, bytes) else packet, *attached)
    return _flat(answer, answer[1] if answer[0] == POSTED else None)


V = TypeVar("V", Packet, Answer)


def _flat(value: V, bundle: Bundle | None) -> V | bytes:
    """
    Return a packet or an answer as Ray sends it with the least effort: pickled, unless large data lies beside it.

    Ray pickles by Python code, whatever it is given; `bytes` it sends as they are.
    """
    return value if bundle is not None and bundle.parts else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


class RayDriver(Driver):
    """The way to a Ray cluster; see `Driver`."""

    kills = True

    def __init__(self, label: str, options: Options) -> None:
        self._label = label
        self._options = options
        self._topic = f"parallel-{uuid.uuid4().hex[:8]}"
        self.line = BoardLine(self._topic)
        self._events: Events
        self._loop: asyncio.AbstractEventLoop
        self._ray: Any = None  # from when it is connected
        self._joined: Joined | None = None  # as long as it uses the connection
        self._board: Any = None
        self._remote: Callable[[str], Any]
        self._capacity = options.max_workers or cpus()
        self._refs: dict[int, Any] = {}
        self._places: dict[int, str] = {}  # the workers that are known to run a call
        self._withdrawn: set[int] = set()
        self._ahead: set[int] = set()  # calls of which large parts are on their way
        self._killed: set[int] = set()
        self._come: deque[tuple[int, StandardFuture[bytes | Answer]]] = deque()
        self._is_told = False  # the loop is going to look at what has come
        self._listened: set[int] = set()  # those of whose answers Ray tells
        self._polls = False  # the loop is going to ask for the others
        self._pause = PAUSES[0]
        self._put: WeakKeyDictionary[Supply, asyncio.Future[Any]] = WeakKeyDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._link = ""
        self._is_closing = False

    # -- opening and closing ------------------------------------------------------------------------------------------

    async def open(self, events: Events) -> None:
        """Connect, or start a cluster; see that it is one that can run the calls."""
        ray: Any = _imported()
        refuse_in_forks("Ray")
        self._events = events
        self._loop = asyncio.get_running_loop()
        options = self._options
        self._joined = await aside(partial(CONNECTION.join, ray, options.address, partial(_connect, ray, options)))
        self._ray = ray
        exit_before_others()
        link = ray._private.worker.get_dashboard_url()
        self._link = f"http://{link}" if link else ""
        self._look(ray.nodes(), insist=True)
        said: dict[str, Any] = {"max_retries": 0, "retry_exceptions": False, **self._taken()}
        function = ray.remote(run_packet)

        def named(name: str) -> Any:
            return function.options(name=name, **said)

        self._remote = lru_cache(256)(named)
        free: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_concurrency": 1_000_000}
        self._board = ray.remote(Board).options(name=self._topic, namespace=NAMESPACE, **free).remote()
        self._spawn(self._hear_news())
        self._spawn(self._watch())

    @property
    def _has_connected(self) -> bool:
        """The connection was made for this pool."""
        return self._joined is not None and self._joined.is_new

    def _taken(self) -> dict[str, Any]:
        """Return what each call takes, as Ray is told."""
        options = self._options
        taken: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
        if options.memory is not None:
            taken["memory"] = options.memory
        if options.resources:
            taken["resources"] = dict(options.resources)
        if options.runtime_env is not None and not self._has_connected:  # else all that runs there has it
            taken["runtime_env"] = dict(options.runtime_env)
        return taken

    def _look(self, nodes: Sequence[Mapping[str, Any]], *, insist: bool) -> None:
        """Count how many calls there is room for."""
        asked = self._options.asked()
        room = [
            int(min((node["Resources"].get(name, 0) / amount for name, amount in asked.items()), default=cpus()))
            for node in nodes
            if node["Alive"]
        ]
        if insist and not any(room):
            had = "; ".join(f"{node['NodeManagerAddress']} has {_told(node['Resources'])}" for node in nodes)
            raise RuntimeError(f"no node has room for a call: {_told(asked)} is asked for, and {had}")
        limit = self._options.max_workers
        self._capacity = max(min(sum(room), limit or sum(room)), 1)

    async def _watch(self) -> None:
        """See now and then how many calls there is room for, and whether the head is there."""
        host, _, port = str(self._ray.get_runtime_context().gcs_address).rpartition(":")
        seen = self._loop.time()
        while True:
            await asyncio.sleep(LOOKS)
            if not self._is_connected():
                return
            with suppress(OSError, asyncio.TimeoutError):
                _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), LOOKS)
                writer.close()
                seen = self._loop.time()
                await self._look_again()
            if self._loop.time() - seen > GONE:
                self._broke(f"the head of the cluster, {host}:{port}, has not answered for {GONE:.0f} seconds", None)
                return

    def _is_connected(self) -> bool:
        """Tell whether Ray is; asked before each use of it, as it would start a cluster by itself. If not: `broke`."""
        is_there = self._joined is not None and CONNECTION.has(self._joined) and bool(self._ray.is_initialized())
        if not is_there:
            self._broke("the program has shut Ray down", None)
        return is_there

    async def _look_again(self) -> None:
        before = self.window
        try:
            self._look(await aside(self._ray.nodes), insist=False)
        except Exception:
            LOGGER.debug("%s: it could not be told how much room there is", self._label, exc_info=True)
        if self.window > before:
            self._events.has_room()

    def _broke(self, reason: str, cause: BaseException | None) -> None:
        if not self._is_closing:
            self._events.broke(reason, cause)

    async def close(self) -> None:
        """Leave the cluster; end it if it was started for pools, and this is the last one."""
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        joined, self._joined = self._joined, None
        if joined is None:
            return
        if self._board is not None and self._ray.is_initialized():
            self._ray.kill(self._board)
        self._board = None
        self._refs.clear()
        self._put.clear()
        await aside(partial(CONNECTION.leave, joined))
        await aside(sweep)  # Ray's workers are killed: they leave what was uploaded

    def abandon(self) -> None:
        """Keep what belongs to Ray for ever: to free it here, Ray would ask threads that are not here."""
        _inherited.append((self._refs, self._put, self._board, self._come))

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """What its workers run, and as much again; besides what Ray may have in its queue."""
        limit, has_its_own = self._options.max_workers, self._has_connected and self._options.address in LOCAL
        return 2 * self._capacity + WINDOW if limit is None or has_its_own else limit

    @property
    def capacity(self) -> int:
        """How many calls run at a time."""
        return self._capacity

    @property
    def workers(self) -> int:
        """For how many calls there is room: Ray starts and ends processes as it likes."""
        return self._capacity

    @property
    def dashboard_link(self) -> str:
        """The address of the dashboard, if there is one."""
        return self._link

    def send(self, packet: Packet, supplies: tuple[Supply, ...], priority: int) -> None:
        """Submit a call; what is large is put into Ray's store first."""
        if packet.arguments.size < LARGE and all(supply.bundle.size < LARGE for supply in supplies):
            attached = [(supply.key, supply.bundle) for supply in supplies]
            self._submit(_flat(packet, packet.arguments), packet.name, packet.number, attached)
        else:
            self._spawn(self._send_large(packet, supplies))

    async def _send_large(self, packet: Packet, supplies: tuple[Supply, ...]) -> None:
        try:
            sent: Any = packet
            self._ahead.add(packet.number)
            if packet.arguments.size >= LARGE:
                sent = await aside(partial(self._ray.put, packet))
            attached = [await self._put_once(supply) for supply in supplies]
            self._ahead.discard(packet.number)
            if packet.number in self._withdrawn:
                self._withdrawn.discard(packet.number)
                self._events.withdrawn(packet.number)
            else:
                self._submit(sent, packet.name, packet.number, attached)
        except Exception as error:
            self._ahead.discard(packet.number)
            self._withdrawn.discard(packet.number)
            self._events.failed(packet.number, error)

    async def _put_once(self, supply: Supply) -> Any:
        """Return what stands for a supply in Ray's store; all who need it wait for the first who puts it there."""
        putting = self._put.get(supply)
        if putting is None or (putting.done() and putting.exception() is not None):
            work = aside(partial(self._ray.put, (supply.key, supply.bundle)))
            putting = self._put[supply] = asyncio.ensure_future(work)
        return await asyncio.shield(putting)

    def _submit(self, packet: Any, name: str, number: int, attached: list[Any]) -> None:
        if not self._is_connected():
            return
        ref = self._refs[number] = self._remote(name).remote(packet, *attached)
        if self._is_busy:
            self._poll_soon()
        else:
            self._listen(number, ref)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what becomes of them -----------------------------------------------------------------------------------------

    @property
    def _is_busy(self) -> bool:
        """There is more to do than workers can begin with now: nobody waits for the next answer with idle hands."""
        return len(self._refs) > 2 * self._capacity

    def _listen(self, number: int, ref: Any) -> None:
        """Be told when an answer is there."""
        self._listened.add(number)
        ref.future().add_done_callback(partial(self._comes, number))

    def _poll_soon(self) -> None:
        if not self._polls:
            self._polls = True
            self._loop.call_later(self._pause, self._poll)

    def _poll(self) -> None:
        """See which answers are there, of those that nobody listens for; being told of each costs as much again."""
        self._polls = False
        if self._is_closing or not self._is_connected():
            return
        unheard = {ref: number for number, ref in self._refs.items() if number not in self._listened}
        ready: list[Any] = []
        if unheard:
            looked_at = list(islice(unheard, POLLED))
            ready, others = self._ray.wait(looked_at, num_returns=len(looked_at), timeout=0)
            if len(unheard) > POLLED:
                for ref in others:  # those that take long are not to keep others from being looked at
                    number = unheard[ref]
                    self._refs[number] = self._refs.pop(number)
            for ref, (answer, error) in zip(ready, self._fetched(ready), strict=True):
                self._end(unheard.pop(ref), answer, error)
            self._events.has_room()
        self._pause = PAUSES[0] if ready else min(2 * self._pause, PAUSES[1])
        if self._is_busy:
            self._poll_soon()
        else:
            for ref, number in unheard.items():
                self._listen(number, ref)

    def _fetched(self, ready: list[Any]) -> list[tuple[Any, BaseException | None]]:
        """Return the answers, or what is raised instead of them."""
        try:
            return [(answer, None) for answer in self._ray.get(ready)]
        except Exception as error:  # of any of them
            if len(ready) == 1:
                return [(None, error)]
            return [found for ref in ready for found in self._fetched([ref])]

    def _comes(self, number: int, answer: StandardFuture[bytes | Answer]) -> None:
        """On a thread of Ray's: have the loop look at it, and at what comes until then."""
        self._come.append((number, answer))
        if not self._is_told:
            self._is_told = True
            with suppress(RuntimeError):  # the loop is gone, and its calls have ended
                self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._is_told = False
        while self._come and not self._is_closing:
            number, answer = self._come.popleft()
            error = answer.exception()
            self._end(number, None if error is not None else answer.result(), error)
        self._events.has_room()

    def _end(self, number: int, answer: Any, error: BaseException | None) -> None:
        """Tell how a call has ended."""
        if self._refs.pop(number, None) is None:
            return
        place = self._places.pop(number, "")
        if error is None:
            self._events.answered(number, pickle.loads(answer) if isinstance(answer, bytes) else answer)
        else:
            self._fail(number, place, error)
        for numbers in (self._listened, self._withdrawn, self._killed):
            numbers.discard(number)

    def _fail(self, number: int, place: str, error: BaseException) -> None:
        names = {base.__name__ for base in type(error).__mro__}
        if number in self._killed:
            self._events.lost(number, Loss(True, place))
        elif number in self._withdrawn and "TaskCancelledError" in names:
            self._events.withdrawn(number)
        elif not names.isdisjoint(_BROKEN):
            self._broke(f"Ray can't go on: {type(error).__name__}: {_first_line(error)}", error)
        elif not names.isdisjoint(_LOST):
            self._events.lost(number, Loss(True if place else None, place, error))
        else:
            self._events.failed(number, getattr(error, "cause", None) or error)

    async def _hear_news(self) -> None:
        """Hear what workers tell, for ever."""
        while self._is_connected():
            try:
                told = cast("list[Told]", await self._board.hear.remote())
            except Exception:  # the actor's process has died; it is started again
                LOGGER.debug("%s: workers can't be heard", self._label, exc_info=True)
                await asyncio.sleep(LOOKS)
                continue
            for worker, news in told:
                for number, item, items in news:
                    if number in self._refs:
                        self._places[number] = worker
                        self._events.began(number, item, items)

    # -- cancelling ---------------------------------------------------------------------------------------------------

    def withdraw(self, number: int) -> None:
        """Have Ray forget it; if it has begun after all, its function gets a KeyboardInterrupt."""
        ref = self._refs.get(number)
        if number in self._ahead:  # what is large of it is on its way: then it is not sent
            self._withdrawn.add(number)
        elif ref is not None and self._is_connected():
            self._withdrawn.add(number)
            self._ray.cancel(ref)

    def kill(self, number: int) -> None:
        """End the process that runs it."""
        ref = self._refs.get(number)
        if ref is not None and self._is_connected():
            self._killed.add(number)
            self._ray.cancel(ref, force=True)

    def ask(self, number: int) -> None:
        """Tell its worker, through the board."""
        place = self._places.get(number)
        if place is not None and self._is_connected():
            self._board.ask.remote(place, origin(), number)


_inherited: Final[list[object]] = []
"""What a forked child must not free."""


def _connect(ray: Any, options: Options) -> None:
    """
    Connect this process to Ray, as its options say.

    Raises:
        ConnectionError: Nobody answers at the address; Ray itself would ask for a minute.
    """
    address = options.address
    if address not in ANY:
        host, _, port = str(address).rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
        except OSError as error:
            raise ConnectionError(f"nobody answers at {address}: {error}") from error
    said: dict[str, Any] = {"address": address or "local", "configure_logging": False}
    if options.runtime_env is not None:
        said["runtime_env"] = dict(options.runtime_env)
    if address in LOCAL:
        said["num_cpus"] = max(ceil((options.max_workers or cpus()) * (options.num_cpus or 1)), 1)
        said["include_dashboard"] = False
    with _silenced():
        ray.init(**said)


@contextmanager
def _silenced() -> Generator[None]:
    """Keep Ray from warning that it leaves the program's SIGTERM alone, as this is not the main thread."""
    logger = logging.getLogger("ray._private.worker")

    def passes(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("SIGTERM handler is not set")

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _imported() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise RuntimeError('it needs the extra `ray`: pip install "parallel-pools[ray]"') from error


def _told(amounts: Mapping[str, float]) -> str:
    """Write amounts, without those that Ray adds for itself."""
    shown = sorted((name, much) for name, much in amounts.items() if not name.startswith(("node:", "object_store")))
    return (
        ", ".join(f"{sized(int(much)) if name == 'memory' else f'{much:g}'} {name}" for name, much in shown)
        or "nothing"
    )


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
