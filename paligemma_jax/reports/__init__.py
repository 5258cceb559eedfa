"""Rows and arrays in, files to look at out."""
