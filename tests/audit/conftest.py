"""One ledger with a full history for all audit tests; each test works on a copy of the file."""

from collections.abc import Iterator

import pytest
from kit.audit import Past, copy_of, past


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    folder = tmp_path_factory.mktemp("past")
    with past(folder) as made:
        made.path = copy_of(made.path, tmp_path_factory.mktemp("copy"))
        yield made
