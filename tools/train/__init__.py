"""Training of the bundles: one command per model, from labelled files to a checked bundle. PyTorch is needed only here."""
