"""Mixed traffic between processes that are killed at random, for as long as it is told, with everything checked.

    python -m bulktransfer.testing.soak --seconds 3600 --seed 1

The auditor (hub.py) stays and judges; players (player.py) are processes that come, do their tasks and are killed. Each
buffer says what must be in it (letters.py); what a player had published when it died stands in a journal (brief.py),
and must have arrived. Needs Python only.
"""
