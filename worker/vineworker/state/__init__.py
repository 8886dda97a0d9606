"""The state machine of the worker. It does no I/O: events in, instructions out."""
