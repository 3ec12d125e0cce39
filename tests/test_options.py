"""
What may be said about a task: how it is merged.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.options import TaskOptions

options = st.builds(TaskOptions, pool=st.none() | st.sampled_from(["threads", "processes", "cluster"]))


@given(options, options, options)
def test_merging_is_associative(high: TaskOptions, middle: TaskOptions, low: TaskOptions) -> None:
    """It doesn't matter which neighbours are merged first."""
    assert high.over(middle).over(low) == high.over(middle.over(low))


@given(options)
def test_saying_nothing_changes_nothing(said: TaskOptions) -> None:
    """Empty options are neutral on either side."""
    assert TaskOptions().over(said) == said == said.over(TaskOptions())


@given(options, options)
def test_what_is_said_wins(high: TaskOptions, low: TaskOptions) -> None:
    """A value said above hides the one below; one not said shows it."""
    assert high.over(low).pool == (low.pool if high.pool is None else high.pool)


def test_merging_leaves_both_as_they_are() -> None:
    """Options are values."""
    high, low = TaskOptions(pool="a"), TaskOptions(pool="b")
    assert high.over(low) == TaskOptions(pool="a")
    assert (high, low) == (TaskOptions(pool="a"), TaskOptions(pool="b"))


@pytest.mark.parametrize("wrong", [3, True, ["threads"], len, b"threads"])
def test_a_pool_is_named_by_a_string(wrong: object) -> None:
    """Whatever else is given as a pool is named in the error."""
    with pytest.raises(TypeError, match=r"^pool: expected the name of a pool, found \S+ .+"):
        TaskOptions(pool=wrong)  # type: ignore[arg-type]  # that is the test


def test_an_option_that_does_not_exist_is_refused() -> None:
    """Nothing is accepted and ignored."""
    with pytest.raises(TypeError, match="tiemout"):
        TaskOptions(tiemout=3)  # type: ignore[call-arg]  # that is the test
