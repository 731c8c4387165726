"""Card template, and one facts file per published model."""
