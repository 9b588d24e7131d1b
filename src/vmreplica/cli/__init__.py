"""The command line: a thin edge over the local agent's REST API, on a unix socket, by the standard library's HTTP.

It knows the shapes of ``model`` and the request bodies of ``api``; it decides nothing and touches neither libvirt nor
the stores. Modules that a command does not need are not imported: a start should cost a fraction of a second.
"""
