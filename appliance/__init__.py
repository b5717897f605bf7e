"""Bedside: the appliance that reads at the bedside, keeps everything, and brings the radiologist's word back."""

__version__ = "0.1.0"
