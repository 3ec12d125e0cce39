"""
Kind `ray`: a Ray cluster, or a local one.
"""
