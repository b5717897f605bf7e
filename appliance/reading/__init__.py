"""Reading a capture: decode, quality, model input, findings, triage."""
