"""Decoding and evaluation around prefill and decode_step."""
