"""Stand-ins for the world around a box: captures, senders, networks."""
