from typing import Any

CPU: tuple[int, int]

def export_bytes(
    thing: Any, stream: Any, max_version: tuple[int, int] | None, dl_device: tuple[int, int] | None, copy: bool | None
) -> Any: ...
