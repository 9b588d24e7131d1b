"""A paired host that asks what it likes: ``ask_reverse.py STATE_DIR PEER REQUEST``, with a ReverseRequest as JSON.

Run on a lab host, with that host's own identity. It prints the code of the error that was answered, or ``agreed``.
"""

import sys
from pathlib import Path

from vmreplica.model.errors import VmReplicaError
from vmreplica.peer.book import PeerBook
from vmreplica.peer.client import PeerClient
from vmreplica.peer.identity import Identity
from vmreplica.peer.wire import ReverseRequest


def main() -> None:
    """Ask once."""
    state, name, request = Path(sys.argv[1]), sys.argv[2], ReverseRequest.model_validate_json(sys.argv[3])
    identity = Identity.load_or_create(state / "pki", "hostile")
    with PeerClient(identity, PeerBook(state / "peers.json").by_name(name)) as client:
        try:
            client.reverse(request)
        except VmReplicaError as error:
            print(error.code)  # noqa: T201 - that is its answer
        else:
            print("agreed")  # noqa: T201 - likewise


if __name__ == "__main__":
    main()
