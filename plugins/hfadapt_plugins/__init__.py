"""The plugins that hfadapt ships, registered through the same hooks as anybody's."""
