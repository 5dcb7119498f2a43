"""The adaptation methods that hfadapt ships."""
