"""``python -m vmreplica.cli``."""

from vmreplica.cli.main import main

main()
