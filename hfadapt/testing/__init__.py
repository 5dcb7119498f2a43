"""What tests of hfadapt and of its plugins are made of."""
