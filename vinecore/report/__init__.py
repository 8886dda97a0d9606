"""What a run did, from its journal: `vine_report`."""
