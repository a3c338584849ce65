"""Two models at once: what mixing them shares between settings."""
