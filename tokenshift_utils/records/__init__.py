"""What is measured, as records in the store."""
