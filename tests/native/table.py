"""Prints the table of buffer transitions as C, from states.py alone: the package need not be built."""

import importlib.util
import sys
from pathlib import Path

STATES = Path(__file__).resolve().parents[2] / "src" / "bulktransfer" / "states.py"


def load():
    spec = importlib.util.spec_from_file_location("states", STATES)
    module = importlib.util.module_from_spec(spec)
    sys.modules["states"] = module  # dataclasses and enums look themselves up
    spec.loader.exec_module(module)
    return module


def holds(when, out, in_):
    """Whether a row is for these counts, of which 2 means "more than one"; written anew, not taken from pool.pyx."""
    return {
        "always": True,
        "out > 1": out == 2,
        "out = 1": out == 1,
        "out = 0": out == 0,
        "out = 0, in > 1": out == 0 and in_ == 2,
        "out = 0, in = 1": out == 0 and in_ == 1,
    }[when.value]


def main():
    states = load()
    print("/* made by table.py from states.py */")
    for enum in (states.BufferState, states.BufferAct):
        names = sorted(enum, key=lambda member: member.value)
        print(f"static const char *const {'state' if enum is states.BufferState else 'act'}_names[] = {{")
        print("".join(f'    "{member.name}",\n' for member in names) + "};")
    print("static const bt_table table = {.rows = {")
    for state in sorted(states.BufferState, key=lambda member: member.value):
        for act in sorted(states.BufferAct, key=lambda member: member.value):
            for out in range(3):
                for in_ in range(3):
                    fits = [
                        row
                        for row in states.BUFFER_TABLE
                        if row.state is state and row.act is act and holds(row.when, out, in_)
                        and out + row.out >= 0 and in_ + row.in_ >= 0
                    ]  # fmt: skip
                    assert len(fits) <= 1, f"two transitions for one case: {fits}"
                    cell = f"{{{fits[0].next.value}, {fits[0].out}, {fits[0].in_}}}" if fits else "{0xff, 0, 0}"
                    print(f"    [{state.value}][{act.value}][{out}][{in_}] = {cell},")
    print("}, .plain = {")
    for act in states.BufferAct:
        for state in states.BufferState:
            rows = [r for r in states.BUFFER_TABLE if r.state is state and r.act is act and holds(r.when, 0, 0)]
            plain = rows[0].next.value if rows and rows[0].out == 0 and rows[0].in_ == 0 else 0xFF
            print(f"    [{act.value}][{state.value}] = {plain},")
    print("}};")


if __name__ == "__main__":
    main()
