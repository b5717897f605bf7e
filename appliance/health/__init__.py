"""Whether the box is well: its clock, its watchdog, its numbers."""
