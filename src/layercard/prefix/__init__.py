"""The prefix activation cache: hidden states of the frozen layers, computed once an example and reused."""
