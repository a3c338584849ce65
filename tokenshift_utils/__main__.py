"""``python -m tokenshift_utils`` is the command ``tokenshift``."""

from tokenshift_utils.run.cli import main

main()
