"""The processes that run the functions of a library: the fork server and its slots."""
