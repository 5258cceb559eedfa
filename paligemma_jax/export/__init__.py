"""What the convert door does: weights into other formats, written and compared."""
