"""What `train --data` does before a run: its data found or imported, its config written."""
