"""The report's formal model (I-5.1), executable, with an explorer that enumerates small systems.

`model` names the operations, `invariants` what must hold, `explore` searches; docs/semantics.md explains them.
Knows: nothing of the rest of the library; only the standard library is imported.
"""
