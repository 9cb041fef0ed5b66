"""Programs that attack the library from below: each says what it tries, and how the victim has to take it."""
