"""Small ground that is not sampling: captions, pictures, files, seeds, checks of values.

May import `errors` alone; every other part of the sampler may import it.
"""
