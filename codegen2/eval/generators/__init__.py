"""Who answers problems: our own model, and peers."""
