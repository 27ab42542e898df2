"""What the checkpoint tests share."""

import json

import pytest

from quamba_edge.checkpoint import open_checkpoint
from quamba_edge.errors import BadCheckpoint


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(path, *says, kind=BadCheckpoint, **options):
    with pytest.raises(kind) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert str(part) in message, message
