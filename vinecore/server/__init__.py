"""The thread that carries out the scheduler's instructions: connections to workers, timers, the objects that the manager holds."""
