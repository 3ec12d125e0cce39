"""
Declared functions: what `@task` keeps, how tasks bind, chain, travel and are routed.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import threading
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any, cast

import cloudpickle
import jobs
import jobs_a
import jobs_b
import pytest

from parallel import (
    Future,
    Task,
    ThreadPool,
    UnknownPoolError,
    UnsuitableFunctionError,
    completed,
    parallel_map,
    task,
    using,
    wait,
)

LONG = 30  # seconds; only a deadlock takes so long
METHODS = ["fork", "forkserver", "spawn"]
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def processes(method: str) -> dict[str, object]:
    """Make a configuration whose processes start so."""
    return {"pools": {"processes": {"kind": "process", "max_workers": 2, "mp_context": method}}}


@task
def resize(width: int, height: int = 2, *, scale: float = 1.0) -> float:
    """Return the area."""
    return width * height * scale


@task(pool="threads")
async def fetch(x: int) -> int:
    """Return twice *x*."""
    return await jobs.async_double(x)


class Shop:
    """A class with tasks of all kinds."""

    def __init__(self, rate: int = 10) -> None:
        self.rate = rate

    @task
    def price(self, x: int) -> int:
        """Return the price."""
        return x * self.rate

    @task(pool="threads")
    @staticmethod
    def double(x: int) -> int:
        """Return twice *x*."""
        return x * 2

    @task
    @classmethod
    def named(cls, x: int) -> str:
        """Return the class's name and *x*."""
        return f"{cls.__name__} {x}"

    @task
    async def slow(self, x: int) -> int:
        """Return the price, slowly."""
        return await jobs.async_double(x) * self.rate

    class Inner:
        """A class inside."""

        @task
        def who(self) -> str:
            """Tell."""
            return "inner"


class Branch(Shop):
    """A subclass."""

    @task
    def price(self, x: int) -> int:
        """Return twice the price of the parent."""
        return super().price(x).result() * 2


# -- a call is a call -------------------------------------------------------------------------------------------------


def test_call_returns_a_future() -> None:
    """Calling submits and returns a Future of the value."""
    future = resize(3, scale=2)
    assert isinstance(future, Future)
    assert future.result(timeout=LONG) == 12
    assert resize(3, height=5).result(timeout=LONG) == 15


def test_local_is_the_plain_function() -> None:
    """local() runs here and now, and raises what the function raises."""
    assert resize.local(3) == 6
    assert task(threading.current_thread).local() is threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        task(jobs.divide).local(1, 0)


def test_local_async() -> None:
    """local() of an async def is its coroutine, as of the plain function."""
    coroutine = fetch.local(2)
    assert inspect.iscoroutine(coroutine)
    coroutine.close()


def test_wrong_arguments() -> None:
    """Wrong arguments are a TypeError that names the function."""
    with pytest.raises(TypeError, match="resize"):
        resize().result(timeout=LONG)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="depth"):
        resize(1, depth=2).result(timeout=LONG)  # type: ignore[call-arg]


def test_keeps_name_docstring_and_signature() -> None:
    """A task has the function's name, docstring, module, annotations and signature."""
    assert resize.__name__ == "resize"
    assert resize.__doc__ == "Return the area."
    assert resize.__module__ == __name__
    assert str(inspect.signature(resize)) == "(width: 'int', height: 'int' = 2, *, scale: 'float' = 1.0) -> 'float'"
    assert resize.__wrapped__(1) == 2
    assert resize.name == f"{__name__}:resize"
    assert "resize" in repr(resize)


def test_arguments_called_as_options_are() -> None:
    """A function's own parameters named as options, or as ours, get their arguments."""
    words = {"timeout": 1, "priority": 2, "key": 3, "pool": 4, "fn": 5, "self": 6}
    declared = task(jobs.takes_words)
    assert declared(**words).result(timeout=LONG) == words
    assert declared.options(pool="threads")(**words).result(timeout=LONG) == words
    assert declared.local(**words) == words


def test_bare_and_called_decorator() -> None:
    """@task, @task() and @task(pool=...) all declare."""
    for decorate in (task, task(), task(pool="threads")):
        assert decorate(jobs.double)(2).result(timeout=LONG) == 4


@pytest.mark.parametrize("wrong", [5, "name", None])
def test_declaring_what_cannot_be_called(wrong: Any) -> None:
    """What can't be called can't be declared."""
    with pytest.raises(TypeError):
        task()(wrong)


def test_declaring_a_generator_function() -> None:
    """A generator function is refused, with what to do."""
    with pytest.raises(UnsuitableFunctionError, match="list"):

        @task
        def values() -> Any:
            yield 1

    with pytest.raises(UnsuitableFunctionError, match="generator"):

        @task
        async def more() -> Any:
            yield 1


def test_declaring_twice() -> None:
    """A task can't be declared again; the message points to options()."""
    with pytest.raises(TypeError, match="options"):
        task(resize)
    with pytest.raises(TypeError, match="declared"):
        task(jobs.squares)


@pytest.mark.parametrize("wrong", [5, ["threads"], "", b"threads"])
def test_pool_that_is_no_name(wrong: Any) -> None:
    """pool= takes a name; what is none is refused where it is said."""
    with pytest.raises((TypeError, ValueError)):
        task(pool=wrong)(jobs.double)
    with pytest.raises((TypeError, ValueError)):
        resize.options(pool=wrong)


def test_unknown_option() -> None:
    """An option that doesn't exist yet is an error, never ignored."""
    with pytest.raises(TypeError, match="retries"):
        task(retries=3)  # type: ignore[call-overload]


def test_classes_partials_and_callable_objects() -> None:
    """Classes, partials, built-ins, lambdas and callable objects work."""

    class Adder:
        def __call__(self, x: int) -> int:
            return x + 1

    assert task(Shop)(5).result(timeout=LONG).rate == 5
    assert task(functools.partial(jobs.add, 1))(2).result(timeout=LONG) == 3
    assert task(len)("abc").result(timeout=LONG) == 3
    assert task(lambda x: x + 1)(1).result(timeout=LONG) == 2
    assert task(Adder())(1).result(timeout=LONG) == 2
    assert task("a-b".split)("-").result(timeout=LONG) == ["a", "b"]


# -- async def --------------------------------------------------------------------------------------------------------


def test_async_def_goes_to_the_loop() -> None:
    """An async def runs in the pool `loop` unless told otherwise, and its value is what comes out."""
    where = task(jobs.to_async(jobs.thread_name))
    assert "loop" in where().result(timeout=LONG)
    assert jobs.loop_double(2).result(timeout=LONG) == 4


def test_async_def_on_threads() -> None:
    """On a thread pool an async def runs to its end on a worker."""
    assert fetch(2).result(timeout=LONG) == 4
    where = task(pool="threads")(jobs.to_async(jobs.thread_name))
    assert "loop" not in where().result(timeout=LONG)


def test_plain_function_on_a_loop() -> None:
    """A plain function that is routed to a loop is refused by the call itself."""
    with pytest.raises(UnsuitableFunctionError, match="async def"):
        resize.options(pool="loop")(1)


def test_function_that_returns_a_coroutine() -> None:
    """No coroutine is ever returned unawaited, though the function is no async def."""
    assert task(lambda: jobs.async_double(2))().result(timeout=LONG) == 4
    assert task(functools.partial(jobs.async_double, 2))().result(timeout=LONG) == 4


def test_coroutine_that_fails_on_a_thread() -> None:
    """An error in a coroutine on a worker is the call's error, and the worker's loop goes on."""

    async def fail() -> None:
        raise ValueError("async")

    with ThreadPool(1) as pool:
        for _ in range(3):
            assert isinstance(pool.submit(fail).exception(timeout=LONG), ValueError)
        assert pool.submit(jobs.async_double, 1).result(timeout=LONG) == 2  # type: ignore[comparison-overlap]


# -- methods ----------------------------------------------------------------------------------------------------------


def test_methods_bind() -> None:
    """Methods, static methods and class methods are called as ever, by object and by class."""
    shop = Shop(3)
    assert shop.price(2).result(timeout=LONG) == 6
    assert Shop.price(shop, 2).result(timeout=LONG) == 6
    assert shop.double(2).result(timeout=LONG) == Shop.double(2).result(timeout=LONG) == 4
    assert shop.named(1).result(timeout=LONG) == Shop.named(1).result(timeout=LONG) == "Shop 1"
    assert shop.slow(1).result(timeout=LONG) == 6
    assert Shop.Inner().who().result(timeout=LONG) == "inner"


def test_inherited_methods() -> None:
    """A subclass's methods are its own; super() and cls mean what they mean."""
    assert Branch(3).price(2).result(timeout=LONG) == 12
    assert Branch.named(1).result(timeout=LONG) == "Branch 1"
    assert Branch().named(1).result(timeout=LONG) == "Branch 1"


def test_bound_task_is_a_task() -> None:
    """A bound task maps, chains, has options and local()."""
    shop = Shop(3)
    assert shop.price.map([1, 2]).result(timeout=LONG) == [3, 6]
    assert shop.price.then(str)(2).result(timeout=LONG) == "6"
    assert shop.price.options(pool="threads")(2).result(timeout=LONG) == 6
    assert shop.price.local(2) == 6
    assert Shop.named.local(1) == "Shop 1"
    assert shop.price.name == f"{__name__}:Shop.price"


def test_standard_decorator_order_can_be_called() -> None:
    """In the other order, @staticmethod and @classmethod over @task, they can be called."""

    class Other:
        @staticmethod
        @task
        def static(x: int) -> int:
            return x * 2

        @classmethod
        @task
        def of_class(cls, x: int) -> str:
            return f"{cls.__name__} {x}"

    assert Other.static(2).result(timeout=LONG) == 4
    assert Other().static(2).result(timeout=LONG) == 4
    assert Other.of_class(1).result(timeout=LONG) == "Other 1"


def test_task_as_a_plain_attribute() -> None:
    """A task in an object's dict or a module is no method."""
    shop: Any = Shop()
    shop.tool = resize
    assert shop.tool(1).result(timeout=LONG) == 2


def test_two_objects_do_not_mix() -> None:
    """Bound tasks of two objects keep their objects."""
    one, two = Shop(1), Shop(2)
    calls = [shop.price(x) for x in range(50) for shop in (one, two)]
    assert [call.result(timeout=LONG) for call in calls] == [x * rate for x in range(50) for rate in (1, 2)]


# -- options and routes -----------------------------------------------------------------------------------------------


def prefix(name: str) -> dict[str, object]:
    """Describe a pool whose threads are called so."""
    return {"kind": "thread", "thread_name_prefix": name}


CONFIG: dict[str, object] = {
    "pools": {name: prefix(name) for name in ("red", "green", "blue")},
    "tasks": {"jobs:thread_*": {"pool": "green"}},
}


def test_options_over_configuration_over_decorator() -> None:
    """What .options() says wins over the configuration, which wins over the decorator."""
    declared = task(pool="red")(jobs.thread_name)
    with using(CONFIG):
        assert declared().result(timeout=LONG).startswith("green")
        assert declared.options(pool="blue")().result(timeout=LONG).startswith("blue")
        assert declared.options()().result(timeout=LONG).startswith("green")
        assert declared().result(timeout=LONG).startswith("green")
        assert task(pool="red")(lambda: jobs.thread_name())().result(timeout=LONG).startswith("red")


def test_options_change_nothing_else() -> None:
    """options() makes another task; the first one stays, and chained options add up."""
    other = resize.options(pool="loop")
    assert other is not resize
    assert other.name == resize.name
    assert resize(1).result(timeout=LONG) == 2
    assert other.options(pool="threads")(1).result(timeout=LONG) == 2


def test_route_follows_the_registry() -> None:
    """One task called in turn under two registries runs in the pool of each."""
    declared = task(pool="here")(jobs.thread_name)
    with using({"pools": {"here": prefix("one")}}) as one, using({"pools": {"here": prefix("two")}}) as two:
        for _ in range(3):
            with using(one):
                assert declared().result(timeout=LONG).startswith("one")
            with using(two):
                assert declared().result(timeout=LONG).startswith("two")


def test_unknown_pool() -> None:
    """An unknown pool is an error of the call itself, with the task's name and the known pools."""
    with pytest.raises(UnknownPoolError) as caught:
        resize.options(pool="nowhere")(1)
    for word in ("nowhere", "resize", "threads", "processes", "loop"):
        assert word in str(caught.value)


def test_tasks_in_many_threads() -> None:
    """One task called by many threads under two registries at once always runs where it should."""
    declared = task(pool="here")(jobs.thread_name)
    wrong: list[str] = []

    def call(name: str) -> None:
        with using({"pools": {"here": prefix(name)}}):
            for _ in range(100):
                found = declared().result(timeout=LONG)
                if not found.startswith(name):
                    wrong.append(found)

    threads = [threading.Thread(target=call, args=(f"thread{index}x",)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert wrong == []


# -- chains of tasks --------------------------------------------------------------------------------------------------


def test_chain() -> None:
    """Tasks chain before they are called; the chain is a task."""
    chain = resize.then(str).then(len)
    assert isinstance(chain, Task)
    assert chain(3, scale=2.0).result(timeout=LONG) == 4
    assert chain.map([1, 10]).result(timeout=LONG) == [3, 4]
    assert "resize" in chain.name
    assert "→" in chain.name


def test_chain_of_pools() -> None:
    """Each stage of a chain runs in its own pool."""

    @task(pool="red")
    def one() -> list[str]:
        return [jobs.thread_name()]

    @task(pool="blue")
    def two(names: list[str]) -> list[str]:
        return [*names, jobs.thread_name()]

    with using(CONFIG):
        names = one.then(two).then(two)().result(timeout=LONG)
    assert [name[:3] for name in names] == ["red", "blu", "blu"]


def test_chain_with_an_async_stage() -> None:
    """Coroutine functions and async tasks are stages as any."""
    assert resize.then(jobs.loop_double).then(jobs.async_double)(3).result(timeout=LONG) == 24
    assert jobs.loop_double.then(jobs.double)(3).result(timeout=LONG) == 12


def test_chain_of_chains() -> None:
    """A chain may be a stage of another chain."""
    half = resize.then(jobs.double)
    assert half.then(jobs.local_double.then(jobs.double))(1).result(timeout=LONG) == 16


def test_chain_local() -> None:
    """local() runs all stages of a chain here and now, coroutines to their end."""
    assert resize.then(jobs.local_double).then(str).local(3) == "12.0"
    assert jobs.loop_double.then(jobs.double).local(3) == 12
    assert jobs.local_double.then(jobs.loop_double).then(jobs.double).local(1) == 8
    assert jobs.local_double.then(jobs.async_double).then(jobs.double).local(1) == 8


def test_chain_fails_and_cancels() -> None:
    """An error skips the later stages; cancelling the end of a chain cancels a queued first stage."""
    chain = task(jobs.divide).then(str)
    assert isinstance(chain(1, 0).exception(timeout=LONG), ZeroDivisionError)
    with using({"pools": {"threads": {"kind": "thread", "max_workers": 1}}}), jobs.Gate() as gate:
        held = task(jobs.wait_at)(gate.address)
        gate.arrived()
        end = resize.then(str)(1)
        assert end.cancel()
        gate.open()
        held.result(timeout=LONG)


def test_chain_has_no_options_of_its_own() -> None:
    """options() on a chain says that each stage has its own."""
    with pytest.raises(TypeError, match="stage"):
        resize.then(str).options(pool="threads")
    with pytest.raises(TypeError, match="callable"):
        resize.then(5)  # type: ignore[call-overload]


def test_long_chain_of_stages() -> None:
    """A chain of 200 stages runs, and so does its local()."""
    chain: Any = jobs.local_double
    for _ in range(200):
        chain = chain.then(lambda x: x + 1)
    assert chain(1).result(timeout=LONG) == 202
    assert chain.local(1) == 202


def test_task_as_continuation() -> None:
    """A task can follow any future, in its own pool."""
    assert completed(3).then(resize).then(jobs.loop_double).result(timeout=LONG) == 12


def test_task_handed_to_a_pool() -> None:
    """pool.submit(task) runs the plain function there; bound tasks keep their object."""
    with ThreadPool(1, "mine") as pool:
        assert pool.submit(task(jobs.thread_name)).result(timeout=LONG).startswith("mine")  # type: ignore[attr-defined]
        assert pool.submit(Shop(3).price, 2).result(timeout=LONG) == 6  # type: ignore[comparison-overlap]
        assert pool.submit(Shop.named, 2).result(timeout=LONG) == "Shop 2"  # type: ignore[comparison-overlap]
        assert list(pool.map(resize, [1, 2])) == [2, 4]  # type: ignore[comparison-overlap]
        chain = resize.then(str)
        assert pool.submit(chain, 2).result(timeout=LONG) == "4.0"  # type: ignore[comparison-overlap]


# -- travelling -------------------------------------------------------------------------------------------------------


def test_pickles_by_reference() -> None:
    """A task of a module pickles as its name, and comes back as itself."""
    assert pickle.loads(pickle.dumps(jobs.remote_double)) is jobs.remote_double
    assert len(pickle.dumps(jobs.remote_double)) < 100
    assert pickle.loads(pickle.dumps(jobs.First.who)) is jobs.First.who
    assert pickle.loads(pickle.dumps(jobs.squares)) is jobs.squares


def test_pickles_with_options_and_bound() -> None:
    """With options, or bound, a task comes back with them."""
    other = pickle.loads(pickle.dumps(jobs.local_double.options(pool="processes")))
    assert other.local(2) == 4
    assert other.name == jobs.local_double.name
    bound = pickle.loads(pickle.dumps(jobs.First().me))
    assert bound.local() == "First.me of First"
    assert pickle.loads(pickle.dumps(jobs.First.kind)).local() == "First.kind of First"
    chain = pickle.loads(pickle.dumps(jobs.local_double.then(jobs.double)))
    assert chain.local(2) == 8


def test_copies() -> None:
    """copy and deepcopy of a task run the same function."""
    assert copy.copy(jobs.local_double)(2).result(timeout=LONG) == 4
    assert copy.deepcopy(jobs.local_double)(2).result(timeout=LONG) == 4


def test_cloudpickle_of_a_local_task() -> None:
    """A task over a lambda or closure travels with cloudpickle."""
    offset = 3
    again = cloudpickle.loads(cloudpickle.dumps(task(lambda x: x + offset)))
    assert again.local(1) == 4
    assert again(1).result(timeout=LONG) == 4


@pytest.mark.parametrize("method", METHODS)
def test_same_names_in_modules_and_classes(method: str) -> None:
    """Functions of one name in two modules and two classes run their own body in other processes."""
    with using(processes(method)):
        assert jobs_a.who().result(timeout=LONG) == "a"
        assert jobs_b.who().result(timeout=LONG) == "b"
        assert jobs.First.who().result(timeout=LONG) == "First"
        assert jobs.Second.who().result(timeout=LONG) == "Second"
        assert jobs.First().me().result(timeout=LONG) == "First.me of First"
        assert jobs.Second().me().result(timeout=LONG) == "Second.me of Second"
        assert jobs.First.kind().result(timeout=LONG) == "First.kind of First"
        assert jobs.Second().kind().result(timeout=LONG) == "Second.kind of Second"


@pytest.mark.parametrize("method", METHODS)
def test_tasks_in_processes(method: str) -> None:
    """Tasks run in other processes: with words, chained, sent as arguments, as lambdas and as coroutines."""
    with using(processes(method)):
        assert jobs.remote_pid().result(timeout=LONG) != os.getpid()
        words = jobs.remote_words(timeout=1, priority=2, key=3, pool=4)
        assert words.result(timeout=LONG) == [1, 2, 3, 4]
        assert jobs.remote_double(jobs.remote_double(2)).result(timeout=LONG) == 8
        assert jobs.remote_double(1).then(jobs.local_double).then(jobs.remote_double).result(timeout=LONG) == 8
        assert jobs.remote_double.then(jobs.loop_double).map([1, 2]).result(timeout=LONG) == [4, 8]
        assert jobs.apply(jobs.remote_double, 3).result(timeout=LONG) == 6
        offset = 5
        assert task(pool="processes")(lambda x: x + offset)(1).result(timeout=LONG) == 6
        assert jobs.loop_double.options(pool="processes")(2).result(timeout=LONG) == 4
        assert isinstance(task(pool="processes")(jobs.divide)(1, 0).exception(timeout=LONG), ZeroDivisionError)


def test_nested_process_calls() -> None:
    """In a worker process calls to process pools run inline: a nest of pools never multiplies processes."""
    with using({"pools": {"processes": {"kind": "process", "max_workers": 1}}}):
        pids = task(pool="processes")(nested)().result(timeout=LONG)
    assert len(set(pids)) == 1
    assert os.getpid() not in pids


def nested() -> list[int]:
    """Call a task of the pool `processes`, perhaps within it."""
    return [os.getpid(), jobs.remote_pid().result(timeout=LONG)]


MAIN = """
import multiprocessing, sys
from parallel import parallel_map, task, using

@task(pool="processes")
def double(x):
    return x * 2

@parallel_map(pool="processes")
def square(x):
    return x * x

class Shop:
    @task(pool="processes")
    @staticmethod
    def price(x):
        return x * 3

    @task(pool="processes")
    def me(self, x):
        return x * 5

def plain(x):
    return x * 7

if __name__ == "__main__":
    with using({"pools": {"processes": {"kind": "process", "max_workers": 2, "mp_context": sys.argv[1]}}}) as registry:
        print(double(1).result(timeout=20), list(square([1, 2])), Shop.price(1).result(timeout=20))
        print(Shop().me(1).result(timeout=20), double.options(pool="processes")(2).result(timeout=20))
        print(registry.pool("processes").submit(plain, 1).result(timeout=20), double.then(plain)(1).result(timeout=20))
        print(registry.pool("processes").submit(lambda x: x + 1, 1).result(timeout=20))
"""


@pytest.mark.parametrize("as_module", [False, True], ids=["script", "module"])
@pytest.mark.parametrize("method", METHODS)
def test_tasks_of_main(method: str, as_module: bool, run_script: Callable[..., CompletedProcess[str]]) -> None:
    """Functions decorated in `__main__` run under every start method, as a script and with python -m."""
    script = MAIN.replace("sys.argv[1]", repr(method))
    done = run_script(script, as_module=as_module, flags=("-W", "ignore::DeprecationWarning"), timeout=60)
    assert done.stdout.splitlines() == ["2 [1, 4] 3", "5 4", "7 14", "2"]
    assert done.stderr == ""


def test_maps_are_declared_functions_too() -> None:
    """parallel_map over a task, and task over a map, say what is wrong."""
    with pytest.raises(TypeError, match="declared"):
        parallel_map(resize)


def test_many_calls_keep_their_order_of_values() -> None:
    """A thousand calls each get their own value."""
    calls = [resize(index) for index in range(1000)]
    assert not wait(calls, timeout=LONG).not_done
    assert [call.result() for call in calls] == [index * 2.0 for index in range(1000)]


def test_a_chain_looks_like_its_first_task() -> None:
    """It is called like that, and says so: documentation, module, signature."""

    @task
    def first(x: int, *, times: int = 2) -> int:
        """Say what it does."""
        return x * times

    chain = first.then(str).then(len)
    assert chain.__name__ == chain.name
    assert chain.__name__.endswith("first → str → len")
    assert chain.__doc__ == "Say what it does."
    assert chain.__module__ == __name__
    assert str(inspect.signature(chain)) == "(x: 'int', *, times: 'int' = 2)"


def test_options_name_what_is_unknown() -> None:
    """A mistyped option of a copy is told as one of the decorator is."""
    with pytest.raises(TypeError, match=r"no option 'timout' \(did you mean 'timeout'\?\)"):
        cast(Any, task(jobs.double)).options(timout=3)
