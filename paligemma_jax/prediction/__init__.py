"""Answers to images and videos, for the predict door and notebooks."""
