"""Code that is sent by value and runs in other processes: it imports the standard library, dask, uproot and `vinecore.protocol` only."""
