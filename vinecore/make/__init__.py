"""``vine_make``: runs files of rules in Makeflow's plain form on workers."""
