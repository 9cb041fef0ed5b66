"""The name service: services are found by name, and gone with their owners (I-8.5).

bulk.create("name:camera", ...)      # in one process
bulk.bind("name:camera")             # in another; `bulk names list` shows what there is
"""

import bulktransfer as bulk

from .service import Entry, NameService, Registration, Watch, current, use

__all__ = ["Entry", "NameService", "Registration", "Watch", "current", "use"]

bulk.backends.announce("name", "bulktransfer.names.backend")
