"""Where the commands find a cluster: by its address, or by the file in which its scheduler says it."""

from __future__ import annotations

import pytest

from daodask._cluster import _address, open_client
from daodask.errors import ClusterError


@pytest.mark.parametrize("address", ["tcp://10.0.0.5:8786", "tls://10.0.0.5:8786", "10.0.0.5:8786", "inproc://1/2/3"])
def test_an_address_is_taken_as_it_is(address):
    assert _address(address) == address


def test_a_scheduler_file_leads_to_its_scheduler(client, tmp_path):
    path = str(tmp_path / "scheduler.json")
    client.write_scheduler_file(path)
    with open_client(scheduler=path) as found:
        assert found.scheduler.address == client.scheduler.address


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "FileNotFoundError"), ("", "JSONDecodeError"), ('{"id": 1}', "KeyError"), ("[1]", "TypeError")],
)
def test_a_scheduler_file_that_is_none_is_an_error_of_ours(tmp_path, text, problem):
    path = tmp_path / "scheduler.json"
    if text is not None:
        path.write_text(text)
    message = rf"expected a scheduler file at {path}, as `dask scheduler --scheduler-file` writes it \({problem}: "
    with pytest.raises(ClusterError, match=message), open_client(scheduler=str(path)):
        pass
