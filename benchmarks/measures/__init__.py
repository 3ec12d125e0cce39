"""The parts of `overhead.py` and `arrays.py`: each is a module that measures, and yields the lines of a table."""
