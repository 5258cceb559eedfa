"""Answers token by token, around prefill and decode_step: sampling, beams, grammars."""
