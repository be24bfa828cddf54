"""What `layercard doctor` checks: an installation, the machine, and a toy run that is really trained."""
