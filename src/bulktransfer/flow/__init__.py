"""Forwarding, fan-out and fan-in: ordinary users of the public names."""
