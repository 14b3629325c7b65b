"""Export to other engines."""
