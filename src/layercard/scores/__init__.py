"""One file a scorer: statistics in, one importance a layer out."""
