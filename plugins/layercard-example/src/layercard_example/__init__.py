"""The smallest layercard plugin: the score `deep_energy` and the strategy `odd_layers`."""
