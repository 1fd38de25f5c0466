"""One module a family: what its network is told, how its latents look, what its guidance means."""
