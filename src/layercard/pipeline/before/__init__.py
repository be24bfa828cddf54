"""What happens before `train()`: probe, consult Layer Cards, choose layers. `choosing.py` is the story."""
