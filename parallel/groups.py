"""
`TaskGroup`: a block that no call made inside it outlives.
"""
