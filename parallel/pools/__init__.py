"""
The engines, and the pools that they run. `kinds` says by which import strings they are reached when one opens.
"""
