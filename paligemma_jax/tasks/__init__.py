"""Text to structure and back, and scores."""
