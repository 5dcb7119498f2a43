"""What runs inside a stock model's ``forward``: slots, hooks, and the state of an adapted model."""
