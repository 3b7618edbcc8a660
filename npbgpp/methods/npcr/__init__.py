"""npcr."""
