"""`hdm verify`: compares every byte of a store with its manifests."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from hdm.errors import DamagedError, HdmError, InputError, counted
from hdm.messages import Terminal
from hdm.options import StoreFolder
from hdm.progress import Tracker, track
from hdm.store import Output, Store, proven, read_at_home, store_root


def verify(
    store: StoreFolder = None,
) -> None:
    """Hash every file of the store (sha256) and compare it with its manifest.

    All damaged files are listed. Nothing is changed, so read permission is enough. To repair the
    damage, run the pipeline again. The exit code is 5 if a file is damaged, and 2 if one could not
    be read. Unfinished outputs are left out: a run checks their files when it continues them.
    """
    root = Store(store_root(store))
    found = _Findings()
    outputs: list[Output] = []
    for folder in root.manifests():
        try:
            # Read all manifests before any file, so that the bar knows the total.
            outputs.append(read_at_home(folder))
        except FileNotFoundError:
            continue  # removed since it was listed
        except HdmError as error:
            found.add(error)
    if not outputs and not found.problems:
        found.console.print(f"there is nothing in {escape(str(root.root))}")
    total = sum(record.bytes for output in outputs for record in output.files)
    with track("verify", -(-total // 10**6), "MB") as bar:
        read = _Megabytes(bar)
        for output in outputs:
            found.look_at(output, read)
    # Raised last, when every damaged file has been listed.
    found.judge(root.root)


class _Findings:
    """The findings, each printed as soon as it is made."""

    def __init__(self) -> None:
        self.console = Terminal(highlight=False, soft_wrap=True)
        self.problems: list[HdmError] = []

    def add(self, problem: HdmError) -> None:
        self.problems.append(problem)
        word = "damaged" if isinstance(problem, DamagedError) else "unreadable"
        self.console.print(
            f"[red]{word:<10}[/] {escape(str(problem.where))}: {escape(problem.what)}"
        )

    def look_at(self, output: Output, read: _Megabytes) -> None:
        before = len(self.problems)
        for record in output.files:
            try:
                if not proven(output.path, record, read.advance):
                    self.add(DamagedError("not what was written", where=output.path / record.name))
            except InputError as error:
                self.add(error)
        if len(self.problems) == before:
            size = sum(record.bytes for record in output.files)
            line = (
                f"{output.name} {output.digest}  {counted(len(output.files), 'file')},"
                f" {counted(size, 'byte')}"
            )
            self.console.print(f"[green]{'whole':<10}[/] {escape(line)}")

    def judge(self, root: Path) -> None:
        """Raise the error that sets the exit code, if anything was found."""
        damaged = sum(isinstance(problem, DamagedError) for problem in self.problems)
        unreadable = len(self.problems) - damaged
        if damaged:
            raise DamagedError(
                f"{damaged} damaged files" + (f", {unreadable} unreadable" if unreadable else ""),
                where=root,
                do="run the pipeline again: what is damaged is made anew",
            )
        if unreadable:
            raise InputError(
                f"{counted(unreadable, 'file')} could not be read",
                where=root,
                do="run as the owner of the store, or have the files made readable (chmod a+r)",
            )


class _Megabytes:
    """Converts bytes to the megabytes of a progress bar."""

    def __init__(self, bar: Tracker) -> None:
        self.bar = bar
        self.done = 0

    def advance(self, num_bytes: int) -> None:
        before = self.done // 10**6
        self.done += num_bytes
        self.bar.advance(self.done // 10**6 - before)
