"""Everything that makes the bundled model: data, networks and their training."""
