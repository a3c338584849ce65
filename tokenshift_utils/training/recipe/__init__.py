"""A study's own training: data, settings, launching, TRL runs."""
