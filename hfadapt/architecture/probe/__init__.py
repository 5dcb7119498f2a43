"""The automatic map: what a model's layers are made of, found by running it and watching the data flow.

The model runs once as it is. Then the last layer of each stack is run again on its own, with random weights, while
single leaves are interfered with; what changes tells queries from keys from values, attention from feed-forward
parts, and norms by role. Names play no part, and a layer whose output the found parts do not add up to is refused.
"""

from .probe import probe

__all__ = ["probe"]
