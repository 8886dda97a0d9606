"""Functions, arguments and results as bytes, and back."""
