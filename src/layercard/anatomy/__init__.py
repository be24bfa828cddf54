"""What a transformer and its adapters look like: layers, targets, narrowing, the gradient entry."""
