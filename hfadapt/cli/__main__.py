"""``python -m hfadapt``."""

from hfadapt.cli import main

main()
