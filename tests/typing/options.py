"""
Options, said as users say them: type checkers take every form that is read. Checked, never run.
"""

from datetime import timedelta
from typing import assert_type

from parallel import Rate, Retry
from parallel.options import Said, TaskOptions, declared_options


def is_busy(error: Exception) -> bool:
    return "busy" in str(error)


def backoff(error: Exception) -> timedelta | float:
    return 3 if is_busy(error) else timedelta(minutes=1)


def page(error: BaseException) -> None: ...


def sold(price: int) -> int:
    return price


options = TaskOptions(
    pool="threads",
    timeout=timedelta(seconds=3),
    deadline="1h30m",
    retry=Retry(OSError, attempts=3, wait_initial="200ms", wait_max=timedelta(seconds=9), wait_jitter=0),
    limit=3,
    rate="100/min",
    priority=-1,
    idempotent=True,
    on_success=sold,
    on_failure=page,
)
TaskOptions(timeout=2.5, deadline=3, rate=Rate(5, "2s"), on_success="shop:sold", on_failure=lambda error: print(error))
TaskOptions(timeout=None, retry=None, limit=None, rate=None, priority=None, idempotent=None, on_success=None)

# What is read is of one form.
assert_type(options.timeout, float | None)
assert_type(options.idempotent, bool | None)
assert_type(options.rate, Rate | None)
assert_type(options.retry, Retry | None)
assert_type(Rate(5, "2s").period, float)
assert_type(Retry().timeout, float | None)
assert_type(Retry().wait_max, float)

# What is retried: exceptions, their names, several, or a function.
Retry(on=OSError)
Retry((OSError, ValueError), attempts=None, timeout=None)
Retry(["OSError", "shop.errors:Busy"])
Retry((OSError, "shop.errors:Busy"))
Retry(is_busy)
Retry(backoff)
Retry(lambda error: error.args == ())

assert_type(Retry().verdict(OSError()), float | bool)
assert_type(Retry().wait(1, lambda: 0.5), float)
assert_type(Retry("OSError").resolved(), Retry)

said: Said = {"timeout": "5m", "rate": "100/min"}
assert_type(declared_options("shop:sell", **said), TaskOptions)
assert_type(declared_options("shop:sell", timeout="5m", limit=3), TaskOptions)
