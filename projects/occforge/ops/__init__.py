"""Operators of csrc/ with their plain-torch references. Needs torch alone."""
