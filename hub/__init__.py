"""The hub: takes in what the bedside boxes send, shows it to radiologists by urgency, sends their word back."""
