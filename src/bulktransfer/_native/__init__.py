"""All that is compiled: layouts and memory order in C11 headers, objects in Cython."""
