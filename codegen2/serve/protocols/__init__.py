"""The HTTP protocols that editors speak."""
