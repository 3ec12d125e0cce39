"""
Kind `process`: child processes.

The pool's side, roof to ground: `pool`, `engine`, `listening`, `looking`, `hiring`, `books`, `leading`, `dispatching`,
`roster`, `calls`, `peer`, `ears`, `reactor`, `packing`, `costs`, `starting`, `replies`. The worker's side: `worker`.
What both need: `references`, `failures`, `pickling`, `board`, `wire`.
"""
