"""What calls cost on clusters, and items of maps, beside the clients that the engines have themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from measures.rounds import OURS, WORKERS, Row, Scale, in_turn, per_call
from measures.work import nothing
from parallel import Registry, gather, task, using

A_CALL: Final = 1.15
"""The most that a call of ours may cost, as a multiple of one of the engine's own client."""

AN_ITEM: Final = 1.05
"""The same, for an item of a map that takes `ITEM` seconds."""

ITEM: Final = 0.01


def nap(number: int) -> int:
    """Take as long as an item takes."""
    time.sleep(ITEM)
    return number


def dask(scale: Scale) -> Iterator[Row]:
    """Measure Dask."""
    distributed: Any = import_module("distributed")
    with _dask_cluster() as address, distributed.Client(address, set_as_default=False) as client:
        client.wait_for_workers(WORKERS)

        def call(calls: int) -> None:
            client.gather([client.submit(nothing, pure=False) for _ in range(calls)])

        def map_items(items: int) -> None:
            assert len(client.gather(client.map(nap, range(items), pure=False))) == items

        yield from _beside(scale, {"kind": "dask", "address": address}, call, map_items)


def ray(scale: Scale) -> Iterator[Row]:
    """Measure Ray."""
    client: Any = import_module("ray")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # as below
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    client.init("local", num_cpus=WORKERS, include_dashboard=False, configure_logging=False)
    try:
        nothing_there, nap_there = (client.remote(function).options(max_retries=0) for function in (nothing, nap))

        def call(calls: int) -> None:
            client.get([nothing_there.remote() for _ in range(calls)])

        def map_items(items: int) -> None:
            assert len(client.get([nap_there.remote(item) for item in range(items)])) == items

        yield from _beside(scale, {"kind": "ray"}, call, map_items)
    finally:
        client.shutdown()


def _beside(
    scale: Scale, said: dict[str, Any], call_client: Callable[[int], None], map_by_client: Callable[[int], None]
) -> Iterator[Row]:
    """Measure calls and maps of a pool beside those of the engine's own client."""
    with Registry({"pools": {"far": said}}) as registry, using(registry):
        ours, napping = task(pool="far")(nothing), task(pool="far")(nap)

        def call(calls: int) -> None:
            gather(*[ours() for _ in range(calls)]).result()

        def map_items(items: int) -> None:
            assert len(napping.map(range(items)).result()) == items

        sides = {OURS: per_call(call, scale.calls), "client": per_call(call_client, scale.calls)}
        yield in_turn("us", sides, scale.rounds).ratio("a call, submitted and gathered", A_CALL)
        items = max(scale.calls // 2, 1)
        sides = {OURS: per_call(map_items, items), "client": per_call(map_by_client, items)}
        yield in_turn("us", sides, scale.rounds).ratio("an item of 10 ms, mapped", AN_ITEM)


@contextmanager
def _dask_cluster() -> Iterator[str]:
    """Start a scheduler, and workers of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scheduler.json"
        here = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
        scheduler = ["distributed.cli.dask_scheduler", "--port", "0", *here]
        workers = ["distributed.cli.dask_worker", "--nworkers", str(WORKERS), "--nthreads", "1", *here]
        # For the functions above: they are known there by this module's name.
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command in (scheduler, workers):
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command],
                        env=env,
                        cwd=folder,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
                while not file.exists():
                    time.sleep(0.05)
            yield str(json.loads(file.read_text())["address"])
        finally:
            for one in running:
                os.killpg(one.pid, signal.SIGKILL)
                one.wait()
