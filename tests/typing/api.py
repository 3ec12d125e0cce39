from typing import assert_type

from parallel import Future, MapFuture, gather, parallel_map, task


@task
def f(x: int, y: str = "") -> float:
    return x


@task(pool="threads")
async def g(x: int) -> str:
    return str(x)


@task
def h(x: str) -> bytes:
    return x.encode()


assert_type(f(1), Future[float])
assert_type(f(1, y="a"), Future[float])
assert_type(g(1), Future[str])
assert_type(f(1).then(str), Future[str])
assert_type(g(1).then(len), Future[int])
assert_type(f.map([1]), MapFuture[float])
assert_type(g.then(len)(1), Future[int])
assert_type(g.then(h)(1), Future[bytes])
assert_type(g.then(h).map([1]), MapFuture[bytes])
assert_type(gather(f(1), g(2)), Future[tuple[float, str]])


@parallel_map
def m(x: int, z: float = 0) -> str:
    return ""


assert_type(m([1]), MapFuture[str])
assert_type(m([1], [2.0]), MapFuture[str])
assert_type(m.local([1]), list[str])


@parallel_map(pool="loop")
async def am(x: int) -> str:
    return ""


assert_type(am([1]), MapFuture[str])


class C:
    @task
    def meth(self, x: int) -> str:
        return ""

    @task
    @staticmethod
    def st(x: int) -> str:
        return ""

    @task(pool="threads")
    @classmethod
    def cl(cls, x: int) -> str:
        return ""

    @parallel_map
    def mm(self, x: int) -> str:
        return ""

    @parallel_map
    @staticmethod
    def sm(x: int) -> str:
        return ""

    @parallel_map
    @classmethod
    def cm(cls, x: int) -> str:
        return ""


assert_type(C().meth(1), Future[str])
assert_type(C().meth.map([1]), MapFuture[str])
assert_type(C.st(1), Future[str])
assert_type(C().st(1), Future[str])
assert_type(C.cl(1), Future[str])
assert_type(C().cl(1), Future[str])
assert_type(C().mm([1]), MapFuture[str])
assert_type(C().cm([1]), MapFuture[str])
assert_type(C().sm([1]), MapFuture[str])
assert_type(C.sm([1]), MapFuture[str])
