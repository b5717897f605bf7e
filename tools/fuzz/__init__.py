"""Broken input of every kind thrown at everything that parses: ``python -m tools.fuzz``."""
