"""``python -m hub``: the command ``bedside-hub``."""

from hub.cli import main

main()
