"""Fused ops of hfadapt: a reference, a C++ CPU and a Triton implementation of each."""
