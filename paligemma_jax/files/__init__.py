"""Files written whole or not at all, free space, locks: what any room may use."""
