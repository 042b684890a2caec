"""The errors that litemed raises on purpose; each is one line, which the commands print as it stands."""

_MOST_SAID = 300  # characters


class LitemedError(Exception):
    """Base of every error that litemed raises on purpose; what it quotes of a file is made printable."""

    def __init__(self, message: str) -> None:
        """Take a message, which becomes one line."""
        super().__init__(printable(message))


class UsageError(LitemedError):
    """The command or call cannot be carried out as asked (exit code 2)."""


class InputError(LitemedError):
    """A case file, an image or its boxes cannot be used."""


class BundleError(LitemedError):
    """A model bundle is missing, damaged or does not match its manifest."""


class EngineError(LitemedError):
    """An inference engine is not installed, or failed to load or to run a graph."""


class OutputError(LitemedError):
    """A result cannot be written."""


def printable(text: str) -> str:
    """Return text as one line without control characters, which are written as their escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def in_short(error: BaseException) -> str:
    """Return what a foreign error says of a file, whose content it may quote, in one printable line, cut."""
    return printable(one_line(error))[:_MOST_SAID]


def one_line(error: BaseException) -> str:
    """Return what a foreign error says, or its name, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
