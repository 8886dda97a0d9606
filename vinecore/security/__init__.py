"""The shared secret and the certificates of a manager."""
