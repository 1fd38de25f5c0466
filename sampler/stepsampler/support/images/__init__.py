"""Images of the user's: one file's pixels, and a folder of them with their texts."""
