"""NeRF: system and model."""
