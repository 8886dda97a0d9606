"""How managers are found: announcements, the catalog server, and the status of a manager."""
