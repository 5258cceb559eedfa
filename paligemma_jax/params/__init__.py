"""What a parameter is called, how large it is, and where it lives."""
