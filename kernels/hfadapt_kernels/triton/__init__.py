"""What the Triton kernels of several ops share, and how they are compiled and judged without a card.

Each op's own kernels stand in its folder. Nothing here imports triton before it is needed.
"""
