"""Bundles and engines: the model that was checked is the model that runs (promise 5)."""
