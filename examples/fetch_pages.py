"""
Fetch a few hundred pages from a server that is slow and fails now and then.

    python examples/fetch_pages.py

Where `fetch` runs stands in `parallel.toml` beside this file: on one event loop (`pool = "loop"`), or in threads
(`pool = "threads"`), each of which runs coroutines in a loop of its own. So does how many of its calls run at a time
(`limit`), and how long one may take (`timeout`). What is worth another try, the code knows best (`retry`). The server
is a part of this program and listens on the loopback interface only.
"""

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NamedTuple

from parallel import Registry, Retry, current_task, gather, task

CONFIGURATION = Path(__file__).with_name("parallel.toml")
PAGES = 300


class Answer(NamedTuple):
    """What came back from the server, in which attempt, and the thread that received it."""

    text: str
    attempt: int
    thread: str


class Page(NamedTuple):
    """What is wanted of a page."""

    title: str
    attempt: int
    thread: str


class BusyError(Exception):
    """The server has no time for the page now."""


class NoPageError(Exception):
    """The server has no such page."""


@task(retry=Retry(on=(OSError, BusyError), attempts=3, wait_initial="20ms"))
async def fetch(port: int, number: int) -> Answer:
    """Get one page, with the little HTTP that this takes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET /{number} HTTP/1.0\r\n\r\n".encode())
        text = (await reader.read()).decode()
    finally:
        writer.close()
    if not text:
        raise ConnectionResetError("the server hung up without an answer")
    if " 503 " in text.splitlines()[0]:
        raise BusyError(text.splitlines()[0])
    return Answer(text, current_task().attempt, threading.current_thread().name)


def read_page(answer: Answer) -> Page:
    """Take what stands between <title> and </title>."""
    status = answer.text.splitlines()[0]
    if " 200 " not in status:
        raise NoPageError(status)
    title = answer.text.partition("<title>")[2].partition("</title>")[0]
    return Page(title, answer.attempt, answer.thread)


def missing(error: Exception) -> Exception:
    """Let a failed page be a result like others: its error."""
    return error


def delay(number: int) -> float:
    """Say how many seconds the server takes over a page."""
    return number % 10 / 100


class Moody(BaseHTTPRequestHandler):
    """
    Answers after up to a tenth of a second.

    It lacks every 19th page. Asked for the first time, it is too busy for every 13th, and hangs up on every 17th; on
    every 71st it always does.
    """

    asked: ClassVar[set[int]] = set()

    def do_GET(self) -> None:
        """Answer one request."""
        number = int(self.path.strip("/"))
        time.sleep(delay(number))
        is_first = number not in self.asked
        self.asked.add(number)
        if number % 71 == 0 or (number % 17 == 0 and is_first):
            return
        if number % 13 == 0 and is_first:
            self.send_error(503)
            return
        if number % 19 == 0:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"<html><title>Page {number}</title></html>".encode())

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class Server(ThreadingHTTPServer):
    """Lets as many connections wait as the pools of the example open at a time."""

    request_queue_size = 128


@contextmanager
def serving() -> Generator[int, None, None]:
    """Run the server for the time of a block, and give its port."""
    with Server(("127.0.0.1", 0), Moody) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def main() -> int:
    """Run the program and return its exit status."""
    start = time.perf_counter()
    with serving() as port, Registry.from_toml(CONFIGURATION):
        load = fetch.then(read_page)
        loads = [load(port, number).catch((OSError, BusyError, NoPageError), missing) for number in range(1, PAGES + 1)]
        pages = gather(*loads).result()
    seconds = time.perf_counter() - start

    threads = {page.thread for page in pages if isinstance(page, Page)}
    again = sum(page.attempt > 1 for page in pages if isinstance(page, Page))
    errors = Counter(type(page).__name__ for page in pages if isinstance(page, Exception))
    alone = sum(delay(number) for number in range(1, PAGES + 1))
    print(f"pages    {PAGES - errors.total()} of {PAGES}, {again} of them not at once")
    print(f"errors   {', '.join(f'{kind} ({number})' for kind, number in errors.most_common())}")
    print(f"threads  {len(threads)}, such as {min(threads)}")
    print(f"seconds  {seconds:.1f}; one page after the other, the server alone would have taken {alone:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
