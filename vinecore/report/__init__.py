"""Summaries and plots of a run from its journal: `vine_journal`."""
