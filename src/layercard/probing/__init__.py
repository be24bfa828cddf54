"""One pass over the user's examples that gathers every statistic the scorers in use ask for."""
