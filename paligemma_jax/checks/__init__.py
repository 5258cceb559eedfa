"""What the check door looks at before anything costs."""
