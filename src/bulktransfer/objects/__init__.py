"""Pipe and Queue: Python objects from process to process, their big buffers without a copy on the way.

Knows: pickle protocol 5, multiprocessing's manners, one socket a queue. Must not know: channels and their rules; where
pools do the work they are the library's own (store.py).
"""
