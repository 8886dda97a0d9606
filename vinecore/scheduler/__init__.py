"""The state machine that decides what each worker does. It does no I/O: events in, instructions out."""
