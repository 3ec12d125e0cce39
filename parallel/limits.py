"""
How many calls of one task may run at a time, and how many in a stretch of time.
"""
