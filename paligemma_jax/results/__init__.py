"""What a notebook gets: small objects that show themselves, and other libraries' own."""
