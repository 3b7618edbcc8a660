"""From photos to a scene that can be trained on: what a folder holds, and what it lacks."""
