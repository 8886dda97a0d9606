"""The public, blocking, thread-safe interface of a manager, under TaskVine's names."""
