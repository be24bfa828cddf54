"""The only room that knows every stage: `place.py` opens it, `before/` runs ahead of `train()`, `during/` inside it."""
