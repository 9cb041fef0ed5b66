"""Bytes to messages and back, sans I/O: no sockets, no asyncio, no rules of channels."""
