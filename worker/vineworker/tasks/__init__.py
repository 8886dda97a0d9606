"""Tasks with a process of their own: sandboxes and commands."""
