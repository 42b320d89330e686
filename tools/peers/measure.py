"""Run a command, and write what it took as JSON: exit status, seconds, CPU seconds and peak memory in bytes.

    python measure.py OUTPUT.json COMMAND...

The kernel begins a new process's peak memory with that of the process that starts it, so this one imports little.
Processes that the command starts and waits for count: their CPU time is added, of peak memories the largest is taken.
"""

import json
import os
import subprocess
import sys
import time

start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump(
        {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": time.perf_counter() - start,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "memory_bytes": usage.ru_maxrss * 1024,
        },
        file,
    )
