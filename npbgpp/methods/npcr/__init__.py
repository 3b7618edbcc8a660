"""NPCR: system, network, losses and temporal stability."""
