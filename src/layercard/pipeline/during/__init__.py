"""What happens inside `train()`: time, try out, move the gradient entry, report. `callback.py` is the story."""
