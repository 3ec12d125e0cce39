"""
Wrong uses of the public API: each line marked `# error` must be one in mypy and in pyright, and no other line.
"""

from parallel import Future, LoopPool, Rate, Retry, ThreadPool, completed, configure, gather, parallel_map, task
from parallel.events import PoolOpened
from parallel.options import TaskOptions, declared_options


@task
def scale(x: int, factor: str = "") -> float:
    return float(x)


@task
async def fetch(x: int) -> str:
    return str(x)


@parallel_map
def shrink(x: int) -> str:
    return ""


class Shop:
    @task
    def price(self, x: int) -> str:
        return ""


def plain(x: int) -> str:
    return ""


def heard(event: PoolOpened) -> None: ...


number: Future[int] = completed(1)

scale("a")  # error: a string for an integer
scale()  # error: an argument is missing
scale(1, unit="m")  # error: no such parameter
scale(1, timeout=3)  # error: options don't mix with arguments
scale.options(timeout=[3])  # error: no duration
task(pool=3)  # error: pools are named by strings
scale.map(["a"])  # error: items of the wrong type
scale.map(1)  # error: nothing to iterate over
scale.submit(fetch(1))  # error: a future of the wrong type
shrink(["a"])  # error: items of the wrong type
shrink(1)  # error: nothing to iterate over
Shop().price("a")  # error: a string for an integer
Shop().price()  # error: an argument is missing
fetch.then(scale)  # error: the stages don't fit
number.then(len)  # error: an integer has no length
number.catch(3, print)  # error: no exception type
number.catch(ValueError, plain)  # error: the handler takes no exception
a: str = scale(1).result()  # error: it is a float
b: Future[int] = fetch(1)  # error: it is a future of a string
c: Future[tuple[int, int]] = gather(number, fetch(1))  # error: the second is a string
ThreadPool("4")  # error: workers are counted
ThreadPool().submit(plain, "a")  # error: a string for an integer
ThreadPool().submit(plain)  # error: an argument is missing
LoopPool(max_workers=1.5)  # error: workers are counted
TaskOptions(limit="x")  # error: calls are counted
TaskOptions(timeout=["5m"])  # error: no duration
TaskOptions(rate=100)  # error: a number has no period
TaskOptions(retry=3)  # error: no Retry
TaskOptions(on_success=3)  # error: no function
TaskOptions(tiemout=3)  # error: no such option
declared_options("shop:sell", limit="x")  # error: calls are counted
declared_options("shop:sell", tiemout=3)  # error: no such option
Retry(3)  # error: no exception type
Retry(lambda error: "5m")  # error: neither yes nor no nor a number
Retry(OSError, 3)  # error: only the first is positional
Retry(attempts=2.5)  # error: attempts are counted
configure({}).on("call_faild", print)  # error: no such event
configure({}).on("call_failed", heard)  # error: it gets another event
Rate("100/min")  # error: two numbers make a rate


async def main() -> None:
    d: int = await fetch(1)  # error: it is a string
    print(d)
