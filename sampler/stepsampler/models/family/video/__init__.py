"""Families of videos whose latents are packed into tokens."""
