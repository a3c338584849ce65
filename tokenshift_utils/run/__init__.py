"""What a reader calls: notebooks, the command line, plans and checks."""
