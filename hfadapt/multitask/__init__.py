"""Several tasks on one base: tasks, heads, metrics, and the model that joins them."""
