"""One class per remedy: what was found, what was expected, what to do.

`exit_code` is what the command line returns for it (docs/cli.md).  Asserts guard our own mistakes; these guard the
user's files and machine.
"""


class QuambaError(Exception):
    """Anything this program can explain in one line."""

    exit_code = 1


class CheckFailed(QuambaError):
    """The thing that was checked is not as it should be."""


class BadUsage(QuambaError):
    """The request contradicts itself or asks for something that does not exist."""

    exit_code = 2


class BadCheckpoint(QuambaError):
    """A source checkpoint cannot be read: the message names file and tensor."""

    exit_code = 3


class BadRecipe(QuambaError):
    """A recipe file asks for what no site or scheme can give."""

    exit_code = 3


class BadText(QuambaError):
    """A calibration or evaluation text cannot be used."""

    exit_code = 3


class BadBundle(QuambaError):
    """A bundle cannot be used; each subclass is one way a file is bad."""

    exit_code = 3


class NotABundle(BadBundle):
    """Some other file."""


class NewerFormat(BadBundle):
    """Written by a later version of quamba_edge."""


class Truncated(BadBundle):
    """The file is shorter (or longer) than its header says."""


class HashMismatch(BadBundle):
    """A tensor's or the manifest's bytes are not the ones that were written."""


class MissingLayout(BadBundle):
    """A tensor lies in a layout that this version cannot read."""


class WrongArchitecture(BadBundle):
    """The model in the bundle is of a family this version cannot run."""


class BadSession(QuambaError):
    """A saved session cannot be used: it is damaged, or some other file."""

    exit_code = 3


class ForeignSession(BadSession):
    """A saved session of another bundle, tokenizer or state dtype: its state would mean something else here."""


class Missing(QuambaError):
    """This machine lacks something; the message ends in the command that brings it."""

    exit_code = 4


class DeviceLost(Missing):
    """A GPU failed and this process has lost it: only another process gets it back."""


class Interrupted(QuambaError):
    """Stopped by the user; the message says how to continue."""

    exit_code = 130
