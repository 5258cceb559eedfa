"""Assembly: settings in, everything a door needs out."""
