"""Families of diffusion: x0 plus sigma times noise; networks of epsilon, v or x0."""
