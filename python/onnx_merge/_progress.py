"""Shows how a run goes on, from the log that it writes."""

import contextlib
import json
import sys


@contextlib.contextmanager
def follower(progress, log):
    """A function that reads what is new in the log and shows it; closes what it opened at the end."""
    if progress is None:
        progress = _notebook() or sys.stderr.isatty()
    if progress is False:
        yield lambda: None
        return
    show = progress if callable(progress) else Bars()
    position, rest = 0, ""

    def look():
        nonlocal position, rest
        if not log.exists():
            return
        with open(log, encoding="utf-8") as file:
            file.seek(position)
            rest += file.read()
            position = file.tell()
        *lines, rest = rest.split("\n")
        for line in lines:
            show(json.loads(line))

    try:
        yield look
    finally:
        if isinstance(show, Bars):
            show.close()


def _notebook():
    return "ipykernel" in sys.modules


class Bars:
    """A bar an arm, by tqdm where that is installed; else a line an arm."""

    def __init__(self):
        try:
            from tqdm.auto import tqdm
        except ImportError:
            tqdm = None
        self._tqdm, self._bar = tqdm, None

    def __call__(self, event):
        kind = event["event"]
        if kind == "arm" and self._tqdm:
            self.close()
            self._bar = self._tqdm(total=event["steps"], desc=f"{event['arm']}, seed {event['seed']}", leave=False)
        elif kind == "step" and self._bar is not None:
            self._bar.n = event["step"]
            self._bar.set_postfix_str(f"loss {event['loss']:.4f}" if event["loss"] is not None else "", refresh=False)
            self._bar.update(0)
        elif kind == "arm_end":
            self.close()
            metric = event["metric"]
            line = f"{event['arm']}, seed {event['seed']}: {metric:.4f} on validation" if metric is not None else event["arm"]
            self._tqdm.write(line, file=sys.stderr) if self._tqdm else print(line, file=sys.stderr)

    def close(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
