"""The explorer: one page on which the threshold moves and the mixed response changes with it."""
