"""The work loads of the report on the block service, measured."""
