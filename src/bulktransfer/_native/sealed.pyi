from .receiving import ReceiveCore

FRAME_SEALS: int

class SealedCore(ReceiveCore):
    def grant_frames(self, count: int) -> None: ...
    def means_used(self) -> dict[str, int]: ...
