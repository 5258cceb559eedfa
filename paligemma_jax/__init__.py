"""Fine-tune PaliGemma 1 and 2 in JAX, on big_vision's names and formats."""
