from .assignment import Assignment
from .sealed import SealedCore

class ValueCore(SealedCore):
    def enter_pool(self, slot: int, assignment: Assignment | None) -> None: ...
