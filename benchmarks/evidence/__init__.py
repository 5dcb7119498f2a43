"""What the papers claim, held against runs on real data; ``python -m benchmarks.evidence``."""
