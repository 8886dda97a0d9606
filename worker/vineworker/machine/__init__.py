"""The machine that the worker runs on: its resources, its processes, and what they use."""
