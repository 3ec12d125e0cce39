"""
Seeing what runs: timelines, graphs, traces, metrics and dumps, made from events.
"""
