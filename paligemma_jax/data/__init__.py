"""From a line of JSON to a batch of arrays."""
