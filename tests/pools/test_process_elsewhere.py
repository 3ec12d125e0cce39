"""
Process pools where a system has less to offer than Linux: what it lacks is taken away, here and in the workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ABSENT = {
    "macos": {
        "os": "memfd_create pidfd_open eventfd eventfd_read eventfd_write sched_getaffinity",
        "select": "epoll",
        "signal": "pidfd_send_signal SIGRTMIN SIGRTMAX sigwaitinfo sigtimedwait",
        "fcntl": "F_SETSIG F_GETSIG",
    },
    "windows": {
        "os": "memfd_create pidfd_open eventfd eventfd_read eventfd_write sched_getaffinity killpg getpgrp setpgrp "
        "setpgid setsid getsid fork register_at_fork",
        "select": "epoll poll",
        "signal": "pidfd_send_signal SIGRTMIN SIGRTMAX sigwaitinfo sigtimedwait pthread_sigmask SIGKILL SIGIO SIGSTOP "
        "SIGCONT setitimer",
        "socket": "send_fds recv_fds CMSG_LEN CMSG_SPACE SCM_RIGHTS",
        "fcntl": "",
        "resource": "",
    },
}
"""What each system lacks, module by module; of a module with no names: the whole of it."""

TAKE_AWAY = """
import sys
for module, names in {absent!r}.items():
    if not names:
        sys.modules[module] = None
        continue
    found = __import__(module)
    for name in names.split():
        if hasattr(found, name):
            delattr(found, name)
if "sched_getaffinity" in {absent!r}["os"]:
    import os
    os.process_cpu_count = os.cpu_count  # as it is there, from CPython 3.13 on
"""

SCRIPT = """
import os
import time
from pathlib import Path
from parallel import ProcessPool, TaskTimeoutError, WorkerDiedError, checkpoint, task, using, wait


def work(number):
    return number * number


def die():
    os._exit(3)


def long_work(note):
    Path(note).write_text("runs")
    while True:
        checkpoint()
        time.sleep(0.001)


if __name__ == "__main__":
    pools = {"one": {"kind": "process", "mp_context": "spawn", "max_workers": 2}}
    with using({"pools": pools}):
        square = task(pool="one")(work)
        print(sum(future.result(30) for future in [square(number) for number in range(1000)]))
        large = task(pool="one")(bytes)
        print(len(large(1_000_000).result(30)), len(large(b"x" * 1_000_000).result(30)))
        print(type(task(pool="one")(die)().exception(30)).__name__)
        print(type(task(pool="one", timeout=0.2)(time.sleep)(3600).exception(30)).__name__)
        asked = task(pool="one")(long_work)("note")
        while not os.path.exists("note"):
            time.sleep(0.01)
        asked.cancel()
        wait([asked], 30)
        print(asked.cancelled())
"""


@pytest.mark.parametrize("system", ABSENT)
def test_works_elsewhere(system: str, tmp_path: Path, run_script: Any) -> None:
    """Calls, large values, deaths, timeouts and requests to stop work without what a system lacks."""
    (tmp_path / "sitecustomize.py").write_text(TAKE_AWAY.format(absent=ABSENT[system]))
    result = run_script(SCRIPT)
    assert result.stdout.splitlines() == [
        "332833500",
        "1000000 1000000",
        "WorkerDiedError",
        "TaskTimeoutError",
        "True",
    ]
    assert result.stderr == ""
