"""
Kind `dask`: a Dask cluster, or a local one.
"""
