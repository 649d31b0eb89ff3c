"""CLIP: search and sort pictures by what they show."""
