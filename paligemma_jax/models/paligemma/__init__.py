"""PaliGemma 1 and 2: the vision tower, the language model, and the two as one."""
