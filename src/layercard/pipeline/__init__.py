"""From a trainer or a model to an adapted model and its report: the only room that knows every stage."""

from layercard.pipeline.placing import place
from layercard.pipeline.probing import probe

__all__ = ["place", "probe"]
