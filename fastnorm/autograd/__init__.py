"""One torch.autograd.Function per op, and the router in front of it."""
