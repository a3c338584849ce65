"""The paper, section by section: records, numbers, plots, claims."""
