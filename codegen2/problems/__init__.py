"""Problem sets and the statistics of their results."""
