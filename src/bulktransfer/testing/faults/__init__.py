"""A real process is stopped at a chosen step of a script and killed there, or one of its system calls fails.

    python -m bulktransfer.testing.faults kill [--every 1]     # kill -9 at each step; prints a table
    python -m bulktransfer.testing.faults fail [--every 1]     # each system call fails once; prints what became of it

Steps are system calls (before and after the kernel does them) and stores to the words that the other side reads
(tracing.py); between two steps nothing changes that anybody else can see. Needs x86-64 and ptrace.
"""
