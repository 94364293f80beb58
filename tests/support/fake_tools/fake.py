"""A tool that takes no time: ``fake.py FOLDER BEHAVIOR``. It counts up in steps that it saves, as
a training does, and continues from there when it is started again. A file "enough" in FOLDER ends
it early.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.05


def main(folder: Path, behavior: str) -> None:
    print(f"pid {os.getpid()}, device {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    name, _, number = behavior.partition("=")
    if name == "exit":
        print("this is why")
        sys.exit(int(number))
    if name == "leave":  # as signals.end_on_signals does
        os._exit(int(number))
    if name == "raise":
        raise RuntimeError("this is why")
    if name == "no_record":
        return
    if name == "step":  # one that another command follows
        (folder / "steps").write_text(number)
        return
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    saved = folder / "saved"
    start = int(saved.read_text()) if saved.exists() else 0
    for step in range(start, int(number or 0)):
        time.sleep(STEP_SECONDS)
        with (folder / "trained").open("a") as f:
            f.write(f"{step}\n")
        unfinished = folder / "unfinished"
        unfinished.write_text(str(step + 1))
        unfinished.replace(saved)
        if stopped:
            sys.exit(143)
        if (folder / "enough").exists():
            break
    if name == "die" and start == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "record.json").write_text(json.dumps({"steps": int(number or 0)}))


main(Path(sys.argv[1]), sys.argv[2])
