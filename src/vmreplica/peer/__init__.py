"""Hosts talking to each other: who they are, how they are paired, and the data plane between them.

HTTPS with mutual TLS 1.3 after ``docs/design/protocol.md``. ``service`` says what a host does for its peers and
``wire`` what is said; ``identity``, ``book`` and ``pairing`` hold who may say it; ``server`` (asyncio) and ``client``
(blocking, thread-safe) carry it.

May not know: what a segment contains, where points are stored, libvirt, schedules. Bodies are opaque bytes here.
"""
