"""The version of hfadapt; the build reads it from here."""

__version__ = "0.1.0"
