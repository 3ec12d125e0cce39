"""
What a map remembers between runs: which item ended, and how.
"""
