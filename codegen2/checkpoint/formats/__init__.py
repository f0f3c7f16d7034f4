"""File formats that hold tensors."""
