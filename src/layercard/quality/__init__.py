"""What adapting fewer layers costs in quality: told before training, tried out in its first minutes."""
