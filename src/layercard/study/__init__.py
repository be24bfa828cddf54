"""Builds Layer Cards: probes a model, fine-tunes sets of its layers under one budget, and records what each reached."""
