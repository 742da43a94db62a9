"""`python -m muniment_server.cli`."""

from muniment_server.cli import main

main()
