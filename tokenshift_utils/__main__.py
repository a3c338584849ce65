"""``python -m tokenshift_utils`` is the command ``tokenshift``."""

from tokenshift_utils.cli import main

main()
