"""What managers announce, and how a worker finds them by name."""
