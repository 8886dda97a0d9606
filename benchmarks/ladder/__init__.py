"""The published ladder of four stacks, in simulation."""
