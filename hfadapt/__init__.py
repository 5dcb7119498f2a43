"""Parameter-efficient and multi-task adaptation of stock Hugging Face models."""

__version__ = "0.1.0"
