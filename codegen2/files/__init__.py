"""Files: paths, text, source trees, shards."""
