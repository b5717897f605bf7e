"""The bedside console: what the health worker sees on the box's screen, a tablet or a phone, with or without a network."""
