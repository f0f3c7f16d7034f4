"""Text around a model: tokens, the infilling format, what fits, and both seams of an insertion."""
