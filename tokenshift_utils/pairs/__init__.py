"""Two models at once: comparing and mixing them."""
