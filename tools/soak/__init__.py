"""An hour in a clinic: everything that is plugged in, used and pulled out, while memory and captures are counted."""
