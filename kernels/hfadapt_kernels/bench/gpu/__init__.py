"""What the Triton kernels do on a card: right, the same every time, how fast, and whether the launches are well chosen.

``make gpu`` runs it from a checkout, on a machine that has torch and Triton and nothing else. Each part writes its JSON
when it ends, the most valuable first, so that what was measured is kept when time runs out.
"""
