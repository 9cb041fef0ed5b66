"""Other ways to hand big buffers to another process, each doing the same work: fill with NumPy here, sum there."""
