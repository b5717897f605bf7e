"""What a box's system is set to, from one site file: rendered, compared, applied, audited."""
