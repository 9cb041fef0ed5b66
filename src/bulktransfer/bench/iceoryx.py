"""iceoryx2's service for one publisher and one subscriber, as both comparisons with it use it.

Knows: its Python binding. Must not know: what is compared.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

from .shared import SLOTS as WINDOW


class Service:
    """One side of an iceoryx2 service for one publisher and one subscriber."""

    def __init__(self, service: str, size: int, *, publishes: bool) -> None:
        import iceoryx2 as iox  # type: ignore[import-not-found, import-untyped, unused-ignore]

        iox.set_log_level(iox.LogLevel.Error)
        builder = iox.NodeBuilder.new().signal_handling_mode(iox.SignalHandlingMode.Disabled)
        self.node: Any = builder.create(iox.ServiceType.Ipc)
        self.service: Any = (
            self.node.service_builder(iox.ServiceName.new(service))
            .publish_subscribe(iox.Slice[ctypes.c_uint8])
            .subscriber_max_buffer_size(WINDOW)
            .history_size(0)
            .enable_safe_overflow(False)  # the default drops silently
            .subscriber_max_borrowed_samples(4)
            .max_publishers(1)
            .max_subscribers(1)
            .open_or_create()
        )
        self.port: Any
        if publishes:
            publisher = self.service.publisher_builder().initial_max_slice_len(size).max_loaned_samples(4)
            self.port = publisher.backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create()
        else:
            self.port = self.service.subscriber_builder().buffer_size(WINDOW).create()

    def close(self) -> None:
        self.port.delete()
        del self.service, self.node
        gc.collect()  # what they refer to in a circle holds the service's files
