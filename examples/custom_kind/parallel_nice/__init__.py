"""
A kind of pool for `parallel`, `kind = "nice"`: processes that leave the machine to others.
"""
