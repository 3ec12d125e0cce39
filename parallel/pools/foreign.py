"""
Kind `executor`: any `concurrent.futures.Executor` that an import string makes.
"""
