from .assignment import Assignment
from .receiving import ReceiveCore

class ValueCore(ReceiveCore):
    def enter_pool(self, slot: int, assignment: Assignment | None) -> None: ...
