"""What answers earn beyond a table of values."""
