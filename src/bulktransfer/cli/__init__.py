"""The command `bulk`: a demonstration, the benchmarks; an ordinary user of the public names."""
