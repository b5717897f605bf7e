"""The way to the hub and back: most urgent first, closed by receipts, resumed after any cut."""
