"""The ways in: every capture comes through the one door of ``intake``."""
