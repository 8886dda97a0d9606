"""Amounts of cores, memory, disk and GPUs, and what tasks are given of them: arithmetic without I/O."""
