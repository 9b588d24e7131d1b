"""The nouns of replication: ids, units, points, manifests, policies, states, health, errors, report shapes.

Everything here is a value or a pure function. Nothing here reads a file, opens a socket, starts a thread or asks
the time: whoever needs "now" is given it. Every other package may import this one; it imports none of them.
"""
