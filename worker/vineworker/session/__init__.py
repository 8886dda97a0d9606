"""What the worker does for one manager: it carries out the instructions of the state machine."""
