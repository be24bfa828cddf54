"""`layercard demo`: layers chosen by `auto`, the last 5, and all layers, side by side on a real small model."""
