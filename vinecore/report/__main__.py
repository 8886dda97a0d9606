"""``python -m vinecore.report``."""

from vinecore.report.text import main

main(prog_name="python -m vinecore.report")
