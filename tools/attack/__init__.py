"""Attackers against a running box, broker and hub: what each tries, and what each got."""
