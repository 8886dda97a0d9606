"""``python -m vinecore.simulate``."""

from vinecore.simulate.cli import main

main(prog_name="python -m vinecore.simulate")
