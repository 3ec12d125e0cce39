"""
What a map shows while it runs: items done, items to go, failures.
"""
