"""What layercard needs of a trainer, and the plain transformers.Trainer's answer."""
