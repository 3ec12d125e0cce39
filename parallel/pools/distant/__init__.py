"""
What the kinds `dask`, `ray` and `executor` share: calls that somebody else's engine brings to its workers.

The pool's side, roof to ground: `pool`, `bridge`, `driver`. The worker's side: `worker`, `telling`. What both need:
`packets`.
"""
