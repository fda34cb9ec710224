"""Errors of a lab; the messages carry what a reader of a failed test needs."""


class LabError(Exception):
    """The lab cannot do what was asked: subject: problem; remedy."""


class CommandFailed(LabError):  # noqa: N818 - it says what happened
    """A command ended with a status other than 0; its output is in the message."""

    def __init__(self, where: str, command: list[str], status: int, output: str) -> None:
        super().__init__(f"{where}: {' '.join(command)}: status {status}\n{output}".rstrip())
        self.status = status
        self.output = output
