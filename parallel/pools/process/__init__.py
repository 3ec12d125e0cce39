"""
Kind `process`: child processes.

The pool's side, roof to ground: `pool`, `engine`, `listening`, `hiring`, `books`, `reactor`, `roster`, `calls`,
`packing`, `peer`, `replies`, `starting`. The worker's side: `worker`. What both need: `failures`, `references`,
`pickling`, `wire`.
"""
