"""Ways out to others, and what they may see: de-identification of DICOM objects and recordings."""
