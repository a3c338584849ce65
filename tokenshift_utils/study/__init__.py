"""Study files, models and tokenizers as files."""
