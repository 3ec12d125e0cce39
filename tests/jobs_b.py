"""
One of two modules that have a function of the same name.
"""

from parallel import task


@task(pool="processes")
def who() -> str:
    """Tell which module this is."""
    return "b"
