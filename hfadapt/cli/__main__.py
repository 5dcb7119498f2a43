"""``python -m hfadapt``."""

from . import main

main()
