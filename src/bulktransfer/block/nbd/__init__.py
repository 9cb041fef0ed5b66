"""The NBD face: stores for every program that speaks NBD (proto.md of the NBD project)."""
