"""The corpus builder: from pinned permissive packages to shuffled, split, tokenised training text."""
