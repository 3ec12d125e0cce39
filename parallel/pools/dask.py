"""
Kind `dask`: a Dask cluster that is there, or one of local processes.

    submit() ──▶ packed ──▶ `Client.submit(run, packet)`, on a loop of ours ──▶ scheduler ──▶ worker ──▶ `gather`, many
                                                                      at a time ──▶ Future ──▶ what follows

Guarantees:
- Each call has a key of its own: none is merged with another, and no argument is taken for an option of Dask's.
- A call that has begun on a worker that dies is not run again, by Dask or by us, unless it is idempotent: as far as the
  scheduler takes our plugin; see `NoReruns`. One that has run less than `NOTICE` may be.
- Results don't stay on the cluster: a key is released when its answer is here.

Source: what `distributed.Client` says of itself; the fields that `NoReruns` changes are those of
`distributed.scheduler.TaskState`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import resolve_name
from typing import Any, ClassVar, Final, NamedTuple
from weakref import WeakKeyDictionary

from parallel.context import Dispatcher
from parallel.elsewhere import are_tls_paths
from parallel.gates import OnFull
from parallel.machine import cpus
from parallel.pools.base import OnExit, check_workers, exit_before_others
from parallel.pools.distant.driver import Driver, Events, Loss, refuse_in_forks
from parallel.pools.distant.packets import Answer, Bundle, Packet, Supply, origin
from parallel.pools.distant.pool import DistantPool
from parallel.pools.distant.telling import News
from parallel.pools.distant.worker import ask_to_stop, run
from parallel.pools.process.killing import KILL

LOGGER = logging.getLogger("parallel")

PAUSE: Final = 0.03
"""Seconds between two gatherings of answers, so that each brings many: one alone costs as much as ten. What comes after
a longer pause is fetched at once."""

ATTEMPTS: Final = 5
"""How often answers are fetched in vain, in a row, until the connection counts as lost."""

WINDOW: Final = 1000
"""Calls that may be with the scheduler besides twice as many as the workers run: it takes a kilobyte for each."""

LARGE: Final = 1 << 18
"""Bytes from which what a call needs goes to the workers by itself, rather than through the scheduler: that takes no
longer from some 0.1 MB on, and the scheduler keeps its last 1,000 messages to each worker."""

_VERSION: Final = "parallel:__version__"
"""Where to find it, for `pkgutil.resolve_name`: a function of ours can't ask whether ours are there."""

PATIENCE: Final = 30.0
"""Seconds that a scheduler may take to answer at the start."""


class UnfitError(RuntimeError):
    """A cluster can't do what is asked for."""


class Options(NamedTuple):
    """
    What is said about the cluster, and about the calls there; see `DaskPool`.
    """

    address: str | None
    max_workers: int | None
    tls: Mapping[str, str] | None
    name: str | None
    resources: Mapping[str, float] | None
    workers: tuple[str, ...]
    kill: bool | None


class DaskPool(DistantPool):
    """
    A pool that runs its calls on a Dask cluster.

    Args:
        address: The scheduler's, such as `tcp://scheduler:8786`; None: a cluster of processes is started here.
        max_workers: Processes of that cluster, each with one thread; None: as many as CPUs. Beside an address: calls
            at a time, None for as many as the workers have threads.
        tls: Paths of what an encrypted connection needs: `ca_file`, `cert` and `key`. None: it is not encrypted.
        client_name: What the scheduler calls this client; None: as the pool.
        resources: What a worker must have for each call, such as `{"GPU": 1}`; one that no worker has is refused.
        workers: Names or addresses of the workers that may run the calls; none: all.
        kill: Whether a call that overruns its timeout, or is cancelled with `running=True`, is ended by force, with
            its worker: True insists on it, which needs nannies, and workers of one thread. None: where that can be.
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

    kind: ClassVar[str] = "dask"

    def __init__(
        self,
        address: str | None = None,
        max_workers: int | None = None,
        *,
        tls: Mapping[str, str] | None = None,
        client_name: str | None = None,
        resources: Mapping[str, float] | None = None,
        workers: Sequence[str] = (),
        kill: bool | None = None,
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
        if max_workers is not None:
            check_workers(max_workers, 1)
        if tls is not None and not are_tls_paths(tls):
            raise ValueError(f"tls must be a mapping with the paths 'ca_file', 'cert' and 'key', found {tls!r}")
        self._options = Options(address, max_workers, tls, client_name or name, resources, tuple(workers), kill)
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

    def _new_driver(self) -> DaskDriver:
        return DaskDriver(self.label, self._options)


class Sealed:
    """A packet that Dask doesn't look into: it would take each tuple for a part of its graph."""

    __slots__ = ("packet",)

    def __init__(self, packet: Packet) -> None:
        self.packet = packet


def run_sealed(sealed: Sealed, *attached: tuple[str, Bundle]) -> Answer:
    """Run a call, on a worker; see `run`."""
    line = sealed.packet.line
    if line is not None:
        line.enter()
    return run(sealed.packet, *attached)


def kill_worker(dask_worker: Any) -> None:
    """In a nanny: kill its worker, and start another one, as when that dies."""
    os.kill(dask_worker.pid, KILL)


class DaskLine:
    """
    Tells the client what runs, through the scheduler; see `telling.Line`.

    Args:
        topic: The client listens to that.
    """

    worker: Any = None
    """The worker of this process; calls tell it, as no other thread knows it."""

    def __init__(self, topic: str) -> None:
        self.topic = topic

    def enter(self) -> None:
        """On the thread of a call: find out which worker this is."""
        if DaskLine.worker is None:
            DaskLine.worker = import_module("distributed").get_worker()

    def tell(self, news: list[News]) -> None:
        """Tell it."""
        worker = DaskLine.worker
        worker.log_event(self.topic, {"worker": worker.address, "news": [list(each) for each in news]})

    def __reduce__(self) -> tuple[Any, ...]:
        return _line_of, (self.topic,)


@cache
def _line_of(topic: str) -> DaskLine:
    """Return the one line of a topic in this process: what is told by one goes in one message."""
    return DaskLine(topic)


class DaskDriver(Driver):
    """The way to a Dask cluster; see `Driver`."""

    def __init__(self, label: str, options: Options) -> None:
        self._label = label
        self._options = options
        self._id = uuid.uuid4().hex[:8]
        self._topic = f"parallel-{self._id}"
        self.line = DaskLine(self._topic)
        self._events: Events
        self._client: Any = None
        self._cluster: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # what the local cluster's workers put on disk
        self._capacity = options.max_workers or cpus()
        self._workers = 0
        self._futures: dict[int, Any] = {}
        self._places: dict[int, str] = {}  # the addresses of the workers that are known to run a call
        self._withdrawn: set[int] = set()
        self._answered: set[int] = set()  # those whose answers are on the cluster
        self._finished: list[int] = []  # of these, those that nobody has fetched yet
        self._gathering = False
        self._gathered_at = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._is_near = False  # its workers can be reached from here without asking whether
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ahead: set[int] = set()  # calls of which large parts are on their way
        self._scattered: WeakKeyDictionary[Supply, asyncio.Future[Any]] = WeakKeyDictionary()
        self._checked: set[str] = set()  # addresses of workers; empty until there was a look
        self._has_seen_any = False  # worker, of any kind
        self._killable: set[str] = set()  # addresses of those that a nanny starts anew, and that run one call at a time
        self._link = ""
        self._is_closing = False

    # -- opening and closing ------------------------------------------------------------------------------------------

    async def open(self, events: Events) -> None:
        """Connect, or start a cluster; see that it is one that can run the calls."""
        distributed: Any = _imported("distributed")
        refuse_in_forks("Dask")
        self._events = events
        self._loop = asyncio.get_running_loop()
        options = self._options
        address: Any = options.address
        if address is None:
            address = await self._start_cluster(distributed)
        security = None if options.tls is None else distributed.Security(**_security(options.tls))
        self._client = distributed.Client(
            address,
            asynchronous=True,
            set_as_default=False,
            name=options.name,
            security=security,
            timeout=PATIENCE,
        )
        await self._connect()
        self._link = str(self._client.dashboard_link or "")
        exit_before_others()  # the threads that Dask works with are shut down there
        await distributed.utils.offload(int)  # has its one start: CPython 3.12.0 and 3.12.1 start none at the exit
        await self._look_at_workers()
        self._client.subscribe_topic(self._topic, self._hear)
        await self._keep_from_rerunning()
        self._spawn(self._watch())

    async def _connect(self) -> None:
        """
        Wait until the client is connected; `close` closes it even if it can't be.

        Raises:
            UnfitError: The connection has to be encrypted, and nobody has said by what; or that is no address.
        """
        try:
            await self._client
        except ValueError as error:
            raise UnfitError(
                f"{self._options.address!r} is no address of a scheduler, such as 'tcp://scheduler:8786': {error}"
            ) from error
        except TypeError as error:
            if self._options.tls is not None or not str(self._options.address).startswith("tls:"):
                raise
            raise UnfitError(
                f"{self._options.address} is the address of an encrypted connection: "
                "the option tls has to name its ca_file, cert and key"
            ) from error

    async def _start_cluster(self, distributed: Any) -> Any:
        """Start a cluster on this machine, which leaves nothing on its disk."""
        folder = self._folder = tempfile.TemporaryDirectory(prefix="parallel-dask-", ignore_cleanup_errors=True)
        with _imported("dask").config.set({"temporary-directory": folder.name}):  # for the scheduler, which takes none
            self._cluster = await distributed.LocalCluster(
                n_workers=self._capacity,
                local_directory=folder.name,
                threads_per_worker=1,
                dashboard_address=":0",
                asynchronous=True,
                silence_logs=logging.ERROR,
            )
        return self._cluster

    async def _check_versions(self, workers: Collection[str]) -> None:
        """
        Compare what runs here with what runs there, on the scheduler and on these workers.

        Raises:
            UnfitError: Packets could not be read there, which ends a worker of Dask's; or answers here.
        """
        versions: Any = await self._client.get_versions()
        mine = {**_versions(versions["client"]), "parallel": resolve_name(_VERSION)}
        others = {"the scheduler": {**_versions(versions["scheduler"]), "parallel": await self._version_there()}}
        told = await self._client.run(resolve_name, _VERSION, workers=list(workers), on_error="return")
        for at in workers:
            if at in versions["workers"]:  # else it has gone meanwhile
                ours = told.get(at)
                packages = _versions(versions["workers"][at])
                others[f"worker {at}"] = {**packages, "parallel": ours if isinstance(ours, str) else "is not there"}
        wrong: list[str] = []
        for who, theirs in others.items():
            differing = [
                f"{what} {theirs.get(what)}, here {mine[what]}" for what in mine if theirs.get(what) != mine[what]
            ]
            if differing:
                wrong.append(f"{who} has {'; '.join(differing)}")
        if wrong:
            raise UnfitError(f"the versions differ: {' | '.join(wrong)}; install the same there, and here")

    async def _version_there(self) -> str:
        """Return the version of this package on the scheduler, which reads what it passes on."""
        try:
            return str(await self._client.run_on_scheduler(resolve_name, _VERSION))
        except (ImportError, AttributeError):
            return "is not there"

    async def _look_at_workers(self) -> None:
        """
        Count the workers that may run calls, and what they run at a time.

        Raises:
            UnfitError: The first workers that are there can't do what is asked for.
        """
        options = self._options
        info: Any = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        new = info.keys() - self._checked
        if options.address is not None and (new or not self._checked):
            await self._check_versions(new)
            self._checked = {"", *info}  # of those that come again later, nothing is known any more
        able = {
            at: one
            for at, one in info.items()
            if (not options.workers or at in options.workers or one["name"] in options.workers)
            and all(one["resources"].get(what, 0) >= much for what, much in (options.resources or {}).items())
        }
        are_first, self._has_seen_any = bool(info) and not self._has_seen_any, self._has_seen_any or bool(info)
        if are_first and not able:
            had = "; ".join(f"{one['name']} has {one['resources'] or 'none'}" for one in info.values())
            raise UnfitError(
                f"no worker may run the calls: resources {dict(options.resources or {})} and workers "
                f"{list(options.workers) or 'all'} are asked for, and {had}"
            )
        self._killable = {at for at, one in info.items() if one["nanny"] is not None and one["nthreads"] == 1}
        can_kill = self._killable.issuperset(able)
        if are_first and options.kill and not can_kill:
            raise UnfitError("kill = true: a call can be ended by force only on workers of one thread with a nanny")
        self.kills = can_kill and options.kill is not False
        self._workers = len(able)
        self._is_near = all(_is_local(at) for at in info)
        threads = sum(one["nthreads"] for one in able.values())
        self._capacity = (options.max_workers if options.address is not None else None) or max(threads, 1)

    async def _keep_from_rerunning(self) -> None:
        """Have the scheduler forget how calls of ours are run once they have been given to a worker."""
        try:
            plugin = import_module("parallel.pools.distant.scheduling").NoReruns(f"-{self._id}-")
            await self._client.register_plugin(plugin, name=self._topic)
        except Exception as error:
            LOGGER.warning(
                "%s: the scheduler takes no plugin, so Dask itself runs calls again whose worker dies: %s",
                self._label,
                error,
            )

    async def _watch(self) -> None:
        """See now and then which workers there are, and whether the scheduler is."""
        while not self._is_closing:
            await asyncio.sleep(1.0)
            if not self._is_connected:
                self._broke()
                return
            self._forget_messages()
            try:
                before = self.window
                await self._look_at_workers()
            except UnfitError as error:
                self._events.broke(str(error), None)
                return
            except Exception:
                LOGGER.debug("%s: the scheduler doesn't answer", self._label, exc_info=True)
                continue
            if self.window > before:
                self._events.has_room()

    def _forget_messages(self) -> None:
        """Drop the last 1,000 messages, calls and arguments, that Dask keeps in this process for its developers."""
        connections: list[Any] = [self._client.scheduler_comm]
        if self._cluster is not None:
            connections += self._cluster.scheduler.stream_comms.values()
        for one in connections:
            log = getattr(one, "recent_message_log", None)
            if log is not None:
                log.clear()

    @property
    def _is_connected(self) -> bool:
        return self._client is not None and bool(self._client.status == "running")

    def _broke(self, cause: BaseException | None = None) -> None:
        if not self._is_closing:
            where = self._options.address or "of the local cluster"
            self._events.broke(f"the connection to the scheduler {where} is lost", cause)

    async def close(self) -> None:
        """Leave the cluster; end it if it is ours."""
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        client, self._client = self._client, None
        cluster, self._cluster = self._cluster, None
        ours: list[Any] = [client, cluster]
        for one in ours:
            if one is not None:
                try:
                    await one.close()
                except Exception:
                    LOGGER.exception("%s: %r could not be closed", self._label, one)
        if self._folder is not None:
            self._folder.cleanup()

    # -- sending ------------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """What its workers run, and as much again; besides what the scheduler may have in its queue."""
        if self._options.address is not None and self._options.max_workers is not None:
            return self._options.max_workers
        return 2 * self._capacity + WINDOW

    @property
    def capacity(self) -> int:
        """How many calls run at a time."""
        return self._capacity

    @property
    def workers(self) -> int:
        """How many workers may run calls."""
        return self._workers

    @property
    def dashboard_link(self) -> str:
        """The address of the scheduler's pages."""
        return self._link

    def send(self, packet: Packet, supplies: tuple[Supply, ...], priority: int) -> None:
        """Submit a call; what is large goes ahead."""
        if packet.arguments.size < LARGE and all(supply.bundle.size < LARGE for supply in supplies):
            attached = [(supply.key, supply.bundle) for supply in supplies]
            self._submit(packet.number, packet.name, priority, Sealed(packet), *attached)
        else:
            self._spawn(self._send_large(packet, supplies, priority))

    async def _send_large(self, packet: Packet, supplies: tuple[Supply, ...], priority: int) -> None:
        try:
            sealed: Any = Sealed(packet)
            self._ahead.add(packet.number)
            if packet.arguments.size >= LARGE:
                [sealed] = await self._client.scatter([sealed], hash=False, direct=self._is_near or None)
            attached = [await self._scatter(supply) for supply in supplies]
            self._ahead.discard(packet.number)
            if packet.number in self._withdrawn:
                self._withdrawn.discard(packet.number)
                self._events.withdrawn(packet.number)
            else:
                self._submit(packet.number, packet.name, priority, sealed, *attached)
        except Exception as error:
            self._ahead.discard(packet.number)
            self._withdrawn.discard(packet.number)
            self._events.failed(packet.number, error)

    async def _scatter(self, supply: Supply) -> Any:
        """Return what stands for a supply on the cluster; anew, if that has been lost. Others wait for the first."""
        scattering = self._scattered.get(supply)
        if scattering is None or (scattering.done() and not _is_sound(scattering)):
            scattering = self._scattered[supply] = asyncio.ensure_future(self._scatter_now(supply))
        return await asyncio.shield(scattering)

    async def _scatter_now(self, supply: Supply) -> Any:
        [future] = await self._client.scatter([(supply.key, supply.bundle)], hash=False, direct=self._is_near or None)
        return future

    def _submit(self, number: int, name: str, priority: int, sealed: Any, *attached: Any) -> None:
        options = self._options
        future = self._client.submit(
            run_sealed,
            sealed,
            *attached,
            key=f"{name.rpartition(':')[2].rpartition('.')[2]}-{self._id}-{number}",
            pure=False,
            retries=0,
            priority=priority,
            resources=dict(options.resources) if options.resources else None,
            workers=list(options.workers) or None,
        )
        self._futures[number] = future
        self._spawn(self._follow(number, future))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- what becomes of them -----------------------------------------------------------------------------------------

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """On the loop: hear what runs."""
        _, told = event
        for number, item, size in told["news"]:
            if number in self._futures:
                self._places[number] = told["worker"]
                self._events.began(number, item, size)

    async def _follow(self, number: int, future: Any) -> None:
        """See to the end of a call. (Callbacks of Dask's futures take a thread, and a coroutine each besides.)"""
        try:
            await future.exception()
        except Exception:  # it was cancelled
            LOGGER.debug("call %d of %s has not ended", number, self._label, exc_info=True)
        self._ended(number, future)

    def _ended(self, number: int, future: Any) -> None:
        if number not in self._futures or self._is_closing:
            return
        status = future.status
        if status == "finished":
            self._answered.add(number)
            self._finished.append(number)
            if not self._gathering:
                self._gathering = True
                self._spawn(self._gather())
        elif status == "error":
            self._spawn(self._fail(number, future))
        elif number in self._withdrawn:
            self._forget(number)
            self._events.withdrawn(number)
        elif not self._is_connected:
            self._broke()
        else:  # it was cancelled by somebody else; or its answer, or what it needs, was lost with a worker
            place, has_run = self._places.get(number, ""), number in self._answered
            self._forget(number)
            self._events.lost(number, Loss(has_run or bool(place), place))
        self._events.has_room()

    async def _gather(self) -> None:
        """Fetch the answers that are there, many at a time."""
        failures = 0
        try:
            while self._finished and not self._is_closing:
                await asyncio.sleep(self._gathered_at + PAUSE - self._loop.time())
                self._gathered_at = self._loop.time()
                numbers, self._finished = self._finished, []
                futures = {number: self._futures[number] for number in numbers if number in self._futures}
                try:
                    answers: Any = await self._client.gather(futures, errors="skip", direct=self._is_near)
                except Exception as error:  # such as a connection that was cut in the middle
                    failures += 1
                    if failures >= ATTEMPTS or not self._is_connected:
                        self._broke(error)
                        return
                    self._finished += numbers
                    await asyncio.sleep(failures * PAUSE)
                    continue
                failures = 0
                self._take(futures, answers)
        finally:
            self._gathering = False

    def _take(self, futures: Mapping[int, Any], answers: Mapping[int, Answer]) -> None:
        for number, future in futures.items():
            answer = answers.get(number)
            if answer is not None:
                self._forget(number)
                self._events.answered(number, answer)
            else:
                self._ended(number, future)
        self._events.has_room()

    async def _fail(self, number: int, future: Any) -> None:
        error: Any = await future.exception()
        place = self._places.get(number, "")
        self._forget(number)
        if type(error).__name__ == "KilledWorker":
            # Not as the cause: what it says of several workers is untrue of ours, see `NoReruns`.
            self._events.lost(number, Loss(False, place or str(getattr(error.last_worker, "address", ""))))
        else:
            self._events.failed(number, error)
        self._events.has_room()

    def _forget(self, number: int) -> None:
        future = self._futures.pop(number, None)
        self._places.pop(number, None)
        self._withdrawn.discard(number)
        self._answered.discard(number)
        if future is not None:
            future.release()

    # -- cancelling ---------------------------------------------------------------------------------------------------

    def withdraw(self, number: int) -> None:
        """Have the scheduler forget it."""
        future = self._futures.get(number)
        if number in self._ahead:  # then it is not sent
            self._withdrawn.add(number)
        elif future is not None:
            self._withdrawn.add(number)
            self._spawn(self._client.cancel([future]))

    def kill(self, number: int) -> None:
        """Restart the worker that runs it; if it isn't one that can be, tell the function that it is to stop."""
        place = self._places.get(number)
        if place is not None:
            self._spawn(self._kill(number, place))

    async def _kill(self, number: int, place: str) -> None:
        if place not in self._killable:
            await self._look_at_workers()
        if place not in self._killable:
            await self._ask(number, place)
            return
        future = self._futures.pop(number, None)
        if future is None:
            return
        try:
            await self._client.cancel([future], force=True)
            # Not by `restart_workers`, which waits 4 seconds for the function.
            await self._client.run(kill_worker, workers=[place], nanny=True, on_error="ignore")
        except Exception:
            LOGGER.exception("%s: worker %s could not be restarted", self._label, place)
        self._places.pop(number, None)
        self._events.lost(number, Loss(True, place))

    def ask(self, number: int) -> None:
        """Tell its worker."""
        place = self._places.get(number)
        if place is not None:
            self._spawn(self._ask(number, place))

    async def _ask(self, number: int, place: str) -> None:
        try:
            await self._client.run(ask_to_stop, origin(), number, workers=[place], on_error="ignore")
        except Exception:
            LOGGER.debug("%s: worker %s could not be told", self._label, place, exc_info=True)


def _is_sound(scattering: asyncio.Future[Any]) -> bool:
    """Tell whether what was sent ahead is still there."""
    if scattering.cancelled() or scattering.exception() is not None:
        return False
    return bool(scattering.result().status == "finished")


def _is_local(address: str) -> bool:
    """Tell whether that is on this machine, for certain."""
    return address.startswith("inproc:") or "://127." in address or "://[::1]" in address


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise RuntimeError('it needs the extra `dask`: pip install "parallel-pools[dask]"') from error


def _security(tls: Mapping[str, str]) -> dict[str, Any]:
    """Return what `distributed.Security` is given; a file that can't be read is told by name, which `ssl` doesn't."""
    for path in tls.values():
        with open(path, "rb"):
            pass
    return {
        "tls_ca_file": tls["ca_file"],
        "tls_client_cert": tls["cert"],
        "tls_client_key": tls["key"],
        "require_encryption": True,
    }


def _versions(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that have to be the same; of Python, without the last part."""
    packages: Mapping[str, Any] = table["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, **{name: str(packages.get(name)) for name in ("dask", "distributed", "cloudpickle")}}
