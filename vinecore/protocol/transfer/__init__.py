"""Objects on their way between processes: content, digests, directory trees."""
