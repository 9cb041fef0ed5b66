"""How operations ended.

Knows: what a continuation gets. Must not know: when it is called.
"""


cdef class Outcome:
    """How an operation ended, as its continuation gets it: error is None or the exception."""

    def __init__(self, operation, channel, error=None, buffer=None, pool=None):
        self.operation = operation
        self.channel = channel
        self.error = error
        self.buffer = buffer
        self.pool = pool

    def __repr__(self):
        return f"<Outcome of {self.operation}: {'done' if self.error is None else repr(self.error)}>"
