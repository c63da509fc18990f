"""What the paper has not: the default policy in other conditions and without one of its parts, and swap over slower links."""
