"""``python -m vinecore.report``."""

from vinecore.report.cli import main

main(prog_name="python -m vinecore.report")
