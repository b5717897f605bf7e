"""What must survive: files, keys, the vault of encrypted blobs, the journal and its state machines."""
