"""Which layers to adapt, and why."""
