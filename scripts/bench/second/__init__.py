"""A second model that has nothing in common with the bundled one: its data, extractor and judge."""
