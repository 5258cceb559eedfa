"""Where checkpoints and tokenizers come from: names, addresses, downloads."""
