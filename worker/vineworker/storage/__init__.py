"""The cache of the worker, and how objects come into it."""
