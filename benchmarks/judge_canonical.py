"""Judge the canonical solutions of HumanEval and of the three infilling sets made of it: all must pass, and how fast.

    python benchmarks/judge_canonical.py [SET ...] [--part 1/3] [--workers 2] [--out FILE.json]

--part judges one of so many equal parts of each set, where a run must be short; give the parts the same --out, and it
sums them. Needs codegen2[eval] for the problems. Every judgement is a fresh interpreter in strong mode.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from codegen2.eval.judge import Judge
from codegen2.problems.sets import SETS, problem_set


def measure(name: str, part: int, parts: int, workers: int) -> dict[str, Any]:
    """Judge one part of a set; give counts, seconds of wall clock in all, medians of a judgement."""
    problems = problem_set(name).problems[part - 1 :: parts]
    before = cpu_s()
    with Judge(workers=workers, allow_code_execution=True) as judge:
        start = time.perf_counter()
        futures = [judge.submit(p, p.canonical_solution) for p in problems]
        verdicts = [f.result() for f in futures]
        wall_s = time.perf_counter() - start
    for problem, verdict in zip(problems, verdicts, strict=True):
        if not verdict.passed:
            print(f"{problem.task_id}: {verdict.result}", file=sys.stderr)
    return {
        "set": name,
        "part": f"{part}/{parts}",
        "problems": len(problems),
        "passed": sum(v.passed for v in verdicts),
        "wall_s": round(wall_s, 2),
        "cpu_s": round(cpu_s() - before, 2),
        "median_ms": round(1000 * statistics.median(v.wall_s for v in verdicts), 1),
        "median_cpu_ms": round(1000 * statistics.median(v.cpu_s for v in verdicts), 1),
    }


def cpu_s() -> float:
    """Return the CPU seconds of this process and of all that it started and that ended: no other program counts."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def empty_start_ms(n: int = 50) -> float:
    """Return the median milliseconds of a judgement of nothing: two processes, one fresh interpreter, one call."""
    from codegen2.problems.sets import Problem

    nothing = Problem("nothing", "f", "", "def f(): return 1\n", "assert f() == 1")
    with Judge(workers=1, allow_code_execution=True) as judge:
        return round(
            1000
            * statistics.median(judge.judge(nothing, nothing.canonical_solution).wall_s for _ in range(n)),
            1,
        )


def main() -> int:
    """Measure, print a table, keep a JSON; 1 if a canonical solution failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"default: {' '.join(SETS)}")
    parser.add_argument("--part", default="1/1", metavar="I/N")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    part, parts = (int(x) for x in args.part.split("/"))
    rows = json.loads(args.out.read_text())["rows"] if args.out and args.out.exists() else []
    for name in args.sets or SETS:
        row = measure(name, part, parts, args.workers)
        rows = [r for r in rows if (r["set"], r["part"]) != (row["set"], row["part"])] + [row]
    about = {"machine": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}
    about |= {"workers": args.workers, "kernel": platform.release(), "empty_start_ms": empty_start_ms()}
    print(
        f"{'set':<12} {'part':>5} {'passed':>12} {'wall s':>8} {'CPU s':>8} {'median ms':>10} {'its CPU ms':>10}"
    )
    for r in rows:
        passed = f"{r['passed']}/{r['problems']}"
        times = f"{r['wall_s']:>8.2f} {r['cpu_s']:>8.2f} {r['median_ms']:>10.1f} {r['median_cpu_ms']:>10.1f}"
        print(f"{r['set']:<12} {r['part']:>5} {passed:>12} {times}")
    total = {k: round(sum(r[k] for r in rows), 2) for k in ("passed", "problems", "wall_s", "cpu_s")}
    print(f"all: {total['passed']}/{total['problems']} in {total['wall_s']} s, {total['cpu_s']} CPU s")
    print(f"a judgement of nothing: {about['empty_start_ms']} ms")
    if args.out:
        args.out.write_text(json.dumps({"about": about, "total": total, "rows": rows}, indent=1) + "\n")
    return 0 if total["passed"] == total["problems"] else 1


if __name__ == "__main__":
    sys.exit(main())
