"""The hub's pages and JSON interface. Everything they need is served from here: nothing comes from the internet."""
