"""
The file that `python -m parallel init` writes, for people to begin with.
"""

from __future__ import annotations

from typing import Final

TEMPLATE: Final = """\
# Where and how the functions run that this program declares with @task and @parallel_map. Every line with a # may go.
# `python -m parallel check` tells what is wrong in it, `python -m parallel explain MODULE:FUNCTION` what holds for a
# task, and why. An editor completes and checks it with the schema that `python -m parallel schema` prints.

# unobserved = "log"                # a failure that nobody looked at: "log", "warn", "raise" at exit, or "ignore"

# Options of all tasks; what a decorator says wins over them.
# [defaults]
# timeout = "5m"                    # of one attempt: "250ms", "30s", "5m", "1h30m"; a number is seconds

# The three pools that are there anyway. What is left out is as it says.
[pools.threads]
kind = "thread"
# max_workers = 32                  # else 4 more than the CPUs, 32 at most; or "cpus", "cpus-1", "2*cpus"
# max_pending = 10_000              # calls that may wait; else any number
# on_full = "block"                 # beside max_pending, one more: "block", "raise", or "run" it on its caller

[pools.processes]
kind = "process"
# max_workers = "cpus-1"            # else "cpus"
# max_tasks_per_child = 1000        # a fresh process after so many calls; else never
# max_memory_per_child = "2GiB"     # a fresh process when it has grown so large; else never
# on_exit = "cancel"                # what waits when the program ends: "wait" runs it, as is usual

[pools.loop]
kind = "loop"
# max_workers = 100                 # coroutines in flight; else any number

# A pool of your own. Tasks go there by @task(pool="disk"), or by a rule.
# [pools.disk]
# kind = "thread"
# max_workers = 4

# Rules for tasks, which win over their decorators: names or patterns, of which the most specific wins.
# [tasks."shop.images:*"]
# pool = "disk"
# retry = { on = "OSError", attempts = 3 }
# limit = 10                        # calls at a time
# rate = "100/min"                  # calls that start in a period

# Functions that are told what happens.
# [on]
# call_failed = "shop.alerts:page"

# What is observed.
# [observe]
# stats = true                      # failures and times of calls, for stats()
# socket = true                     # `python -m parallel top PID` may look on
# dump_signal = "SIGUSR1"           # `kill -USR1 PID` writes what runs, and where, to standard error

# What is laid over all this by PARALLEL_PROFILE=test, or `using(profile="test")`.
# [profiles.test.pools.threads]
# kind = "inline"                   # calls run where they are made
"""
