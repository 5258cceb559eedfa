"""What model families share: attention, layers, projections, precision, quantized weights."""
