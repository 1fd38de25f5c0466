"""Families of flow: from noise to image along straight lines; networks of a velocity."""
