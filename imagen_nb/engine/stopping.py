"""How a run ends before its last step: a signal that is heard, an error that says why."""

import signal


class TrainingError(RuntimeError):
    "A run that cannot go on; the message says why and what to try."


class StopSignal:
    "Ctrl-C, SIGTERM or SIGUSR1 sets a flag, so that the step is finished; a second Ctrl-C stops at once."

    names = ("SIGINT", "SIGTERM", "SIGUSR1")  # the last as schedulers send it; not everywhere

    def __enter__(self):
        self.received, self.before = False, {}
        for s in (getattr(signal, name) for name in self.names if hasattr(signal, name)):
            try:
                self.before[s] = signal.signal(s, self._note)
            except ValueError:
                pass  # not the main thread: no signals to catch
        return self

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True

    def __exit__(self, *_):
        for s, handler in self.before.items():
            signal.signal(s, handler)
