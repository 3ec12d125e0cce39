"""
Kind `process`: child processes. `pool` is the parent's side, `worker` the child's, `wire` what goes between them.
"""
