"""The image format: segments, their compressed frames, the index, qcow2 tables, folding, qemu-img runners.

Knows files and bytes. Knows nothing of libvirt, peers, the spool, the repository's layout or retention: whoever
calls says which file, which backing name and which records. Nothing that a peer sent becomes a table entry
unchecked: ``segment.parse`` is the gate, everything behind it may rely on what it promises.
"""
