"""Families of videos: flows on latents of frames."""
