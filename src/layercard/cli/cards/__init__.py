"""`layercard cards`: the library of Layer Cards; one file a command."""
