"""The benchmarks of the report (II-5.2) and the machine's floor beside them.

Knows: the public names of the library, as any other program does. Must not know: how the library works inside.
"""
