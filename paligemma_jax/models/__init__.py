"""The towers: arrays in, arrays out."""
