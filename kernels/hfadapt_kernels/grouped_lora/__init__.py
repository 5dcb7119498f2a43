"""Low-rank updates for rows of different tasks: `grouped_lora`, and `lora_linear` with the base product."""

from .op import grouped_lora, lora_linear

__all__ = ["grouped_lora", "lora_linear"]
